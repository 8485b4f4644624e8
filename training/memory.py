"""What to say when memory runs out."""

from slm_judge.recipe import Recipe


def memory_advice(recipe: Recipe) -> str:
    """Which settings of the recipe need less memory."""
    config = recipe.training
    budget = config.tokens_per_pack or "the default"
    checkpointing = "" if config.gradient_checkpointing else "gradient_checkpointing: true, or "
    return (
        f"Lower training.tokens_per_pack (now {budget}), which changes no result; "
        f"then set training.{checkpointing}lower lora.r (now {recipe.lora.r}), take a smaller base "
        f"than {recipe.base}, or keep it in 4 bits (quantization: nf4; now "
        f"{recipe.quantization}). Then run the same command again."
    )
