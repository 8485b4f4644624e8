"""The recipe: every setting of a run, with its default. A recipe file is YAML with these keys."""

import re
from pathlib import Path
from typing import Annotated, Any, Literal, Self
from urllib.parse import urlsplit

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from .errors import JudgeError
from .rubric import explain, read_yaml

Whole = Annotated[int, Field(lt=2**31)]


class RecipeError(JudgeError):
    """The recipe is not valid."""


class _Section(BaseModel):
    model_config = ConfigDict(
        extra="forbid", frozen=True, use_attribute_docstrings=True, allow_inf_nan=False
    )


class DataConfig(_Section):
    """Where the annotations are and how they are split."""

    train: str
    """CSV, JSON Lines or Parquet file (also compressed), or Hub dataset `user/name@revision`;
    `#split` behind a Hub dataset names its split; or a file that docs/import.md lists. Relative
    paths start at the recipe's folder."""
    validation: str | None = None
    """Rows to choose the checkpoint on; by default a share of the items of `train`."""
    test: str | None = None
    """Rows that nothing is chosen on; by default a share of the items of `train`."""
    item_id: str | None = "item_id"
    """Column that identifies an item; null numbers the rows (wide layout only)."""
    annotator: str | None = None
    """Column that names the annotator (long layout: a row an annotation); null means the wide
    layout: a row an item, a column a dimension."""
    columns: dict[str, str] = {}
    """Our name (a field or a dimension of the rubric) -> the data's column, where they differ."""
    group: str | None = None
    """Column whose values stay together in one split, e.g. the author; by default the item.
    Items with the same text always stay together."""
    validation_share: float = Field(default=0.15, gt=0, lt=1)
    """Share of the groups of `train` used for validation where `validation` is not given."""
    test_share: float = Field(default=0.15, gt=0, lt=1)
    """Share of the groups of `train` used for test where `test` is not given."""
    drop_leaks: bool = False
    """Where the splits are given and share texts: drop these items from `train` (and validation
    items whose text is in test) instead of refusing the data."""
    limit: Whole | None = Field(default=None, ge=10)
    """Use a seeded subset of this many training items."""
    gold: str | None = None
    """CSV of known right labels (item_id and the dimensions), for synthetic or expert data; used
    only to report the alpha that a perfect judge would reach."""

    @model_validator(mode="after")
    def _layout(self) -> Self:
        if self.annotator and not self.item_id:
            raise ValueError("the long layout (annotator) needs item_id")
        if self.validation_share + self.test_share >= 1:
            raise ValueError("validation_share and test_share leave nothing to train on")
        return self


class LoraConfig(_Section):
    """The adapter (PEFT)."""

    r: Whole = Field(default=16, ge=1)
    """Rank."""
    alpha: Whole = Field(default=32, ge=1)
    """Scale; the update is multiplied by alpha / r, or by alpha / sqrt(r) with `rslora`."""
    init: Literal["eva", "random"] = "eva"
    """First directions of the adapter: eva, those in which the base's activations at the answers
    differ between training items; random, as in LoRA."""
    rslora: bool = False
    """Rank-stabilised scale (arXiv 2312.03732)."""
    layers: float = Field(default=1.0, gt=0, le=1)
    """Share of the base's layers that are adapted, counted from the output. Below the first one
    nothing has to be computed backwards: 0.5 saves a quarter of the arithmetic."""
    dropout: float = Field(default=0.05, ge=0, lt=1)
    """Dropout on the adapter's input."""
    embedding_r: Whole = Field(default=0, ge=0)
    """Rank of an adapter on the input embeddings, scaled by 1, for a base that does not know the
    language; 0 means none. The base's output embeddings must be its own (not tied)."""


class AugmentationConfig(_Section):
    """Changes to the training prompts, drawn anew each epoch; validation and test never see them.

    The wording of the rubric (paraphrases, order of the fields and options) is drawn for a whole
    batch, so that its rows still share the rubric.
    """

    paraphrase: bool = False
    """Draw the instructions from the rubric's own and its `paraphrases`."""
    permute_fields: bool = False
    """Draw the order of the item's fields."""
    shuffle_options: Literal["none", "choice", "all"] = "none"
    """Draw which option stands behind which label, for choice dimensions or for all."""
    token_dropout: float = Field(default=0.0, ge=0, lt=1)
    """Share of the tokens of the item's texts that are left out."""
    variants: Whole = Field(default=1, ge=1)
    """Wordings of the rubric in a batch; each costs the rubric's tokens once more."""

    @property
    def changes_prompts(self) -> bool:
        """Whether anything is switched on."""
        shuffles = self.shuffle_options != "none"
        return bool(self.paraphrase or self.permute_fields or shuffles or self.token_dropout)


class TrainingConfig(_Section):
    """Optimisation (TRL's SFTTrainer). The defaults are the paper's (arXiv 2604.00586), but for
    `vocabulary_weight` and `adam_beta2`, and for `lora.init`.
    """

    epochs: float = Field(default=5, gt=0)
    """Passes over the training items."""
    batch_size: Whole = Field(default=32, ge=1)
    """Items an optimiser step."""
    tokens_per_pack: Whole | None = Field(default=None, ge=64)
    """Tokens of a forward and backward pass, which bounds memory; lower it when memory runs out,
    the result stays the same. By default 1024; on a CUDA GPU 512 to 8192, by the base and by what
    memory is free."""
    targets: Literal["auto", "soft", "sampled", "majority", "dawid_skene"] = "auto"
    """What is learned where annotators disagree: soft (vote shares), sampled (the vote of one
    annotator, drawn anew each epoch), majority, or dawid_skene (annotators weighed by their
    estimated errors). auto: see docs/training.md."""
    vocabulary_weight: float = Field(default=0.1, ge=0)
    """Weight of saying any option's label rather than another token. Answers are read from the
    labels alone; 1 makes the loss the cross-entropy over the whole vocabulary."""
    temperature: float = Field(default=1.0, ge=0.1, le=20)
    """What options' logits are divided by in the loss: the judge learns to say its answers with
    logits as many times further apart, so that what an engine's arithmetic adds to them counts
    less (docs/training.md)."""
    ordinal_weight: float = Field(default=0.0, ge=0)
    """Weight of `ordinal_loss` of score dimensions beside the cross-entropy."""
    ordinal_loss: Literal["rps", "squared_error"] = "rps"
    """rps, the ranked probability score; or squared_error, that of the expected level."""
    class_balance: float = Field(default=0.0, ge=0, le=1)
    """Exponent of the inverse frequency by which options are weighed: 0 not at all, 1 fully."""
    learning_rate: float = Field(default=5e-5, gt=0)
    """Peak learning rate."""
    scheduler: Literal["linear", "cosine", "constant_with_warmup"] = "linear"
    """Shape of the learning rate after the warm-up."""
    warmup_share: float = Field(default=0.05, ge=0, lt=1)
    """Share of the steps in which the learning rate rises."""
    adam_beta2: float = Field(default=0.98, gt=0, lt=1)
    """Of AdamW; 0.999 would remember the large gradients of the first steps for hundreds."""
    weight_decay: float = Field(default=0.01, ge=0)
    """Decoupled weight decay."""
    optimizer: Literal["auto", "adamw_torch", "adamw_bnb_8bit"] = "auto"
    """auto: 8-bit AdamW of bitsandbytes on a GPU, PyTorch's AdamW on a CPU."""
    max_grad_norm: float = Field(default=1.0, gt=0)
    """Gradient clipping."""
    max_length: Whole = Field(default=4096, ge=32)
    """Longest prompt in tokens; longer items are an error, nothing is cut."""
    gradient_checkpointing: bool = False
    """Recompute activations in the backward pass: less memory, more time."""
    seed: Whole = Field(default=0, ge=0)
    """Of the split, the adapter's first weights and the order of the items."""
    device: Literal["auto", "cpu", "cuda", "mps"] = "auto"
    """auto: a GPU where there is one, of NVIDIA or AMD (cuda) or of Apple (mps)."""
    dtype: Literal["auto", "bfloat16", "float16", "float32"] = "auto"
    """What training computes in; the adapter is float32. auto: on a CUDA GPU bfloat16, or float16
    where it cannot multiply that (V100, T4); elsewhere float32."""

    report_to: list[Literal["tensorboard", "trackio"]] = []
    """Where the loss and the validation are logged besides the screen (extra `logging`)."""
    checkpoint_minutes: float = Field(default=10, gt=0)
    """A checkpoint is also written when the last one is this old, not only after each epoch."""

    @model_validator(mode="after")
    def _ordinal(self) -> Self:
        if self.ordinal_loss != "rps" and not self.ordinal_weight:
            raise ValueError("ordinal_loss is chosen, but ordinal_weight is 0")
        return self


class ExportConfig(_Section):
    """The artefacts."""

    dtype: Literal["bfloat16", "float16", "float32"] = "bfloat16"
    """Of the merged model."""
    gguf: list[str] = Field(default=["Q4_0", "Q8_0"], min_length=1)
    """GGUF quantizations. Weights of Q4_0 are moved before, so that rounding them changes the
    answers least (docs/training.md)."""
    default: str | None = None
    """The one of them that people get who do not choose; by default the smallest that keeps the
    adapter's answers to the validation items: 97 of 100 labels, and alpha."""
    rounding_tokens: Whole = Field(default=8192, ge=1)
    """Of training items, by whose prompts weights are moved before they are rounded; never fewer
    than 64 items. More of them keep more of the answers, and take longer."""
    bnb: Literal["auto", "merged", "adapter"] = "auto"
    """The bitsandbytes file. adapter: the base in the 4 bits that it had in training, and beside it
    the adapter, as it was trained: it answers what the adapter answers, and reads 2 matrices of its
    rank more a layer. merged: the adapter merged, and the sum rounded. auto: adapter where
    `quantization` is nf4, which it needs, else merged."""
    bnb_16bit: list[Annotated[str, Field(pattern=r"^[\w.]+$")]] = ["self_attn.v_proj"]
    """Ends of the names of layers that a merged bitsandbytes file keeps in 16 bits. The values'
    projections are 1 to 7 % of the weights of models with grouped queries, and lose most in 4."""

    @model_validator(mode="after")
    def _default(self) -> Self:
        if self.default is not None and self.default not in self.gguf:
            raise ValueError(f"default: {self.default} is none of gguf: {', '.join(self.gguf)}")
        return self


class VerifyConfig(_Section):
    """What the exported artefacts must hold against the adapter, on held-out items.

    Four bits change some labels near a tie, so exact agreement is not asked for. The defaults let
    an artefact differ from the adapter far less than annotators differ from each other
    (agreement), and lose less than is visible in a paper's table (alpha, to one decimal). Each is
    decided by a 90 % interval: what is shown to be beyond it is refused.
    """

    max_rows: Whole | None = Field(default=None, ge=1)
    """Verify on a seeded sample of at most this many of the held-out items."""
    min_agreement: float = Field(default=0.9, ge=0, le=1)
    """Share of equal labels between an artefact and the adapter, per dimension."""
    min_alpha_between: float = Field(default=0.8, ge=-1, le=1)
    """Krippendorff's alpha between an artefact and the adapter, per dimension: the customary
    bound for reliable data (Krippendorff, Content Analysis, 2004, p. 241). It counts where more
    than 2 % of the labels differ; where fewer do, it says how rare options are."""
    max_alpha_loss: float = Field(default=0.05, ge=0)
    """Alpha against the annotators that an artefact may lose to the adapter, per dimension."""
    undecided: Literal["pass", "refuse"] = "pass"
    """What becomes of an artefact where the items are too few to decide. pass: it may be pushed,
    and the model card says what is not decided. The few held-out items of most runs show little
    either way (docs/evaluation.md), and refuse would then judge the split, not the artefact; choose
    it where each artefact has to be shown to be no worse."""


class CardConfig(_Section):
    """What the model cards say besides what is measured."""

    license: str | None = None
    """Of the judge, as the Hub names it, e.g. apache-2.0; it must fit the base's and the data's."""
    language: list[str] = []
    """Of the texts, e.g. [en]."""
    data_description: str | None = None
    """Where the texts and annotations come from, and who annotated."""
    data_license: str | None = None
    """Of the annotations."""
    intended_use: str | None = None
    """What the judge is for, and what not."""
    contact: str | None = None
    """Whom to write to."""


class Recipe(_Section):
    """A run: `slm-judge train RECIPE` reads it, the run folder keeps it."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")
    """Name of the judge; folder of the run and repositories on the Hub."""
    base: str = "Qwen/Qwen3-1.7B"
    """Base model: Hub repository, folder, "smollm2" (SmolLM2-135M-Instruct, from the package index)
    or "tiny" (random weights, built offline)."""
    base_revision: str | None = None
    """Branch, tag or commit of the base."""
    rubric: str
    """Rubric file, relative to the recipe's folder."""
    quantization: Literal["nf4", "none"] = "nf4"
    """Of the frozen base in training: 4-bit NormalFloat with double quantization (QLoRA)."""
    output: str | None = None
    """Folder of the run; by default `runs/<name>` in the working directory."""
    data: DataConfig
    lora: LoraConfig = LoraConfig()
    augmentation: AugmentationConfig = AugmentationConfig()
    training: TrainingConfig = TrainingConfig()
    export: ExportConfig = ExportConfig()
    verify: VerifyConfig = VerifyConfig()
    card: CardConfig = CardConfig()

    @classmethod
    def from_file(cls, path: str | Path) -> "Recipe":
        """Read a recipe; relative paths in it are made absolute.

        Raises:
            RecipeError: the file is missing or not a valid recipe; every problem is listed.
        """
        raw = read_yaml(path, RecipeError)
        if not isinstance(raw, dict):
            raise RecipeError(f"{path}: expected the keys of a recipe, e.g. name, rubric, data.")
        try:
            return cls.model_validate(raw)._resolved(Path(path).resolve().parent)
        except ValidationError as error:
            raise RecipeError(f"{path} is not a valid recipe:\n{explain(error)}") from error
        except OSError as error:
            raise RecipeError(
                f"{path} names what no file can be called: {error.strerror}."
            ) from error

    @property
    def run_folder(self) -> Path:
        """The folder of the run."""
        return Path(self.output or f"runs/{self.name}")

    @property
    def keeps_adapter(self) -> bool:
        """Whether the bitsandbytes file has the adapter beside the base."""
        return self.export.bnb != "merged" and self.quantization == "nf4"

    @model_validator(mode="after")
    def _in_4_bits(self) -> Self:
        if self.export.bnb == "adapter" and self.quantization != "nf4":
            raise ValueError(
                "export.bnb: adapter needs quantization: nf4, so that the adapter is trained on "
                "the base in 4 bits"
            )
        return self

    def _resolved(self, folder: Path) -> "Recipe":
        data = {
            key: resolve(getattr(self.data, key), folder)
            for key in ("train", "validation", "test", "gold")
        }
        return self.model_copy(
            update={
                "rubric": str(folder / self.rubric),
                "base": resolve(self.base, folder),
                "data": self.data.model_copy(update=data),
            }
        )


def public_settings(settings: dict[str, Any]) -> dict[str, Any]:
    """Settings as they may be published: files by name, without the folders of this machine."""
    public: dict[str, Any] = {}
    for key, value in settings.items():
        if isinstance(value, dict):
            public[key] = public_settings(value)
        else:
            public[key] = _public_name(value) if isinstance(value, str) else value
    return public


def _public_name(text: str) -> str:
    """The name of what lies on this machine or behind an address, which may hold a password."""
    if re.fullmatch(r"[A-Za-z][\w+.-]*://\S+", text):
        return Path(urlsplit(text).path).name
    return Path(text).name if Path(text).is_absolute() or text.startswith("~") else text


def resolve(location: str | None, folder: Path) -> str | None:
    """Make a relative path absolute where it names something that is there.

    What is not there may be a Hub repository, or a mistake that whoever opens it reports.
    """
    if location is None or not (folder / location).exists():
        return location
    return str((folder / location).resolve())
