"""First weights of the adapter: the directions in which the base's activations differ.

LoRA's A starts at random directions of a layer's input, of which a small base has few that tell
items apart; with few steps, most of them go into finding others. EVA (Paischer et al., arXiv
2410.07170) starts it at the input's principal components on the training data. Here, two things are
our own: they are those of the answer slots (of the items' tokens where a layer is read from there:
keys and values), and they leave out the mean activation, which all items share. B starts at zero
as ever, so the model is still the base.
"""

import random
from typing import Any

import torch

from .trainer import SlotTrainer

ITEMS, TOKENS = 96, 1024
"""Training items that are looked at, and most of their tokens or slots."""
SPARE, PASSES = 16, 4
"""Of the search for the components (Halko et al., 2011): directions beyond those that are kept."""
_OF_ITEMS = ("k_proj", "v_proj")


def start_at_activations(trainer: SlotTrainer) -> None:
    """Set A of each linear layer of the trainer's adapter, by one forward pass over some items."""
    layers = {
        name: module
        for name, module in trainer.model.named_modules()
        if len(getattr(module, "lora_A", ()))
    }
    inputs: dict[str, list[torch.Tensor]] = {name: [] for name in layers}
    positions: dict[str, torch.Tensor] = {}
    tokens = 0

    def keep(name: str, x: torch.Tensor) -> None:
        rows, of_items = x.flatten(0, -2), name.rpartition(".")[2] in _OF_ITEMS
        if len(rows) == tokens:  # not an expert's, which reads some tokens alone
            chosen = positions["items" if of_items else "slots"]
            inputs[name].append(rows[chosen.to(x.device)].float().cpu())

    hooks = [
        layer.register_forward_pre_hook(lambda _, given, name=name: keep(name, given[0]))
        for name, layer in layers.items()
    ]
    packs = _packs(trainer)
    trainer.model.eval()  # each step of the trainer sets it anew
    try:
        with torch.no_grad(), trainer.compute_loss_context_manager():
            for pack in packs:
                slots, most = pack["inputs"]["logits_to_keep"].flatten(), TOKENS // len(packs)
                tokens = pack["inputs"]["input_ids"].shape[-1]
                positions["slots"] = _thinned(slots, most)
                positions["items"] = _thinned(_items(pack), most)
                trainer.logits_of(trainer.model, pack)
    finally:
        for hook in hooks:
            hook.remove()
    for name, layer in layers.items():
        (adapter,) = layer.lora_A
        if found := inputs.pop(name):
            _point(layer.lora_A[adapter].weight, torch.cat(found))


def _packs(trainer: SlotTrainer) -> list[dict[str, Any]]:
    dataset, seed = trainer.train_dataset, trainer.args.seed
    chosen = random.Random(seed).sample(range(len(dataset)), min(ITEMS, len(dataset)))  # noqa: S311
    rows = [dataset[i] for i in chosen]
    packs: list[dict[str, Any]] = trainer._prepare_inputs(trainer.data_collator(rows))["packs"]
    return packs


def _items(pack: dict[str, Any]) -> torch.Tensor:
    """Positions of the items' own tokens in a pack."""
    rows, tokens = pack["rows"], pack["inputs"]["input_ids"].shape[-1]
    found = [group.positions.flatten() for group in rows.groups] if rows else [torch.arange(tokens)]
    return torch.cat(found)


def _thinned(positions: torch.Tensor, most: int) -> torch.Tensor:
    """At most so many of the positions, evenly."""
    return positions[:: -(-len(positions) // max(1, most))]


def _point(a: torch.nn.Parameter, inputs: torch.Tensor) -> None:
    """Let the rows of A be principal components of N x channels inputs, as long as they were.

    Where the inputs differ in fewer directions (all slots are the same token in the first layer),
    the other rows stay random.
    """
    mean = inputs.mean(dim=0)
    centred = inputs - mean
    direction = mean / mean.norm().clamp(min=1e-12)
    centred -= (centred @ direction)[:, None] * direction
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)  # of the directions in which the components are sought
        sought = min(len(a) + SPARE, *centred.shape)
        _, spread, components = torch.svd_lowrank(centred, q=sought, niter=PASSES)
    components = components.T[: min(len(a), int((spread > 1e-4 * inputs.norm()).sum()))]
    with torch.no_grad():
        a[: len(components)] = components.to(a) * a.norm(dim=1).mean()
