"""The loss at the answer slots."""

from collections.abc import Callable, Sequence

import torch

from slm_judge.rubric import Rubric

OrdinalLoss = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


class SlotLoss:
    """Cross-entropy over the options, that of saying an option at all, and an ordinal loss.

    Together, with equal weights and a temperature of 1, the first two are the cross-entropy over
    the whole vocabulary. An answer is read from the options' labels alone, so the second could be
    left out, but that other software (a server that lists the likeliest tokens) has to find them.
    """

    def __init__(
        self,
        rubric: Rubric,
        label_ids: Sequence[int],
        ordinal_weight: float = 0.0,
        option_weights: torch.Tensor | None = None,
        ordinal: OrdinalLoss | None = None,
        vocabulary_weight: float = 1.0,
        temperature: float = 1.0,
    ) -> None:
        """Prepare the loss of a rubric with K dimensions and M options in the longest.

        Args:
            rubric: the rubric.
            label_ids: M token ids, of the labels in order.
            ordinal_weight: of the ordinal loss of levels beside the cross-entropy.
            option_weights: K x M, by which the targets are weighed in the cross-entropy.
            ordinal: one of `ORDINAL`, by default the ranked probability score.
            vocabulary_weight: of saying an option rather than anything else.
            temperature: what the options' logits are divided by among themselves.
        """
        self.label_ids = torch.tensor(label_ids)
        self.ordinal_weight = ordinal_weight
        self.option_weights = option_weights
        self.vocabulary_weight = vocabulary_weight
        self.temperature = temperature
        sizes = torch.tensor([len(dimension.options) for dimension in rubric.dimensions])
        self._is_option = torch.arange(int(sizes.max())) < sizes[:, None]
        self._ordinal = ordinal or ranked_probability_score
        self._levels = [
            (k, dimension.n_levels)
            for k, dimension in enumerate(rubric.dimensions)
            if dimension.type == "score"
        ]

    def __call__(
        self, logits: torch.Tensor, targets: torch.Tensor, positions: torch.Tensor
    ) -> torch.Tensor:
        """The loss, summed over the answered slots.

        Args:
            logits: B x K x V.
            targets: B x K x M in option order, shares that sum to 1, or to 0 where nobody answered.
            positions: K x M, which label each option stands behind.
        """
        logits = logits.float()
        scores = option_logits(logits, self.label_ids, positions)
        weighted = targets
        if self.option_weights is not None:
            weighted = targets * self.option_weights.to(targets)
        others = ~self._is_option.to(logits.device)
        option = scores.masked_fill(others, -torch.inf).logsumexp(dim=-1, keepdim=True)
        anything = logits.logsumexp(dim=-1, keepdim=True)
        total = -self.vocabulary_weight * (weighted * (option - anything)).sum()
        scores = scores / self.temperature
        among = scores.masked_fill(others, -torch.inf).logsumexp(dim=-1, keepdim=True)
        total = total - (weighted * (scores - among)).sum()
        if self.ordinal_weight:
            for k, levels in self._levels:
                wanted = targets[:, k, :levels]
                if levels < self._is_option[k].sum():  # of those to whom the question applies
                    share = wanted.sum(dim=-1)
                    wanted = wanted / share.clamp(min=1e-9)[:, None]
                    score = self._ordinal(scores[:, k, :levels], wanted) * share
                else:
                    score = self._ordinal(scores[:, k, :levels], wanted)
                total = total + self.ordinal_weight * score.sum()
        return total


def option_logits(
    logits: torch.Tensor, label_ids: torch.Tensor, positions: torch.Tensor
) -> torch.Tensor:
    """Logits of the options: B x K x M from B x K x V, in option order."""
    ids = label_ids.to(logits.device)[positions]
    return logits.gather(-1, ids.expand(logits.shape[0], -1, -1))


def ranked_probability_score(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """Ranked probability score (Epstein, 1969; Murphy, 1971), between 0 and 1.

    Args:
        logits: B x J, of J ordered levels.
        targets: B x J, shares; rows of zeros score 0.

    Returns:
        B scores: the mean over the J - 1 inner levels of (F_j - O_j)^2, F the cumulated
        probabilities and O the cumulated shares.
    """
    difference = (logits.softmax(dim=-1) - targets).cumsum(dim=-1)[:, :-1]
    answered = targets.sum(dim=-1) > 0
    return difference.square().mean(dim=-1) * answered


def squared_error(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """Squared error of the expected level, with the levels from 0 to 1.

    Args:
        logits: B x J levels.
        targets: B x J shares; zeros where nobody answered.

    Returns:
        B errors.
    """
    levels = torch.linspace(0, 1, logits.shape[-1], device=logits.device)
    difference = (logits.softmax(dim=-1) - targets) @ levels
    return difference.square() * (targets.sum(dim=-1) > 0)


ORDINAL: dict[str, OrdinalLoss] = {"rps": ranked_probability_score, "squared_error": squared_error}
