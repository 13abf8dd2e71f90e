"""Instructions: the answer to a prompt, token by token.

    loss of a sample = mean of -log p(y_t | prompt, y_<t) over the tokens of its answers;  a batch: mean over samples

Every sample has the same weight in training, whatever the length of its answer, so micro batches and clients that train
together have the gradients of the whole batch. Metrics are sums and counts, so those of all clients together are those
of all rows:

    loss          sum of -log p / number of tokens of the answers, in nats per token
    perplexity    exp(loss)
    accuracy      share of tokens with the highest score, given the true tokens before them
    exact_match   share of answers with the highest score at each token

A greedy generation, which takes the token with the highest score again and again, writes the answer if and only if
every token of the answer has the highest score after the tokens before it. So exact_match is that of greedy
generation, from one forward pass, the token that ends the answer included.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from fl.checks import at_least, not_negative
from fl.data.tokenizers import ending, load_tokenizer
from fl.data.views import Batch
from fl.registry import register
from fl.tasks.language import LanguageModelling, PerToken, negative_log_likelihood, perplexity
from fl.tasks.task import Metric
from fl.tensors.functional import under_vmap


def answers(outputs: Tensor, y: Tensor) -> Tensor:
    """Return y (B, L) at the positions of the outputs (B, L', V). A model may leave out padding at the end."""
    if outputs.ndim != 3:
        raise ValueError(
            f"outputs: {tuple(outputs.shape)} are not scores at each position; use model: causal, or predicts: all"
        )
    return y[:, : outputs.shape[1]]


def token_losses(outputs: Tensor, y: Tensor) -> Tensor:
    """Return (B, L'): -log softmax(outputs)_y, from outputs (B, L', V); 0 where y is negative.

    Probabilities are computed in float32, and only where y is a token.
    """
    y = answers(outputs, y)
    if under_vmap(y):
        return negative_log_likelihood(outputs.float(), y)
    return known_losses(outputs[y >= 0], y)


def known_losses(scores: Tensor, y: Tensor) -> Tensor:
    """Return `token_losses` (B, L) from the scores (n, V) at the n positions where y (B, L) is not negative."""
    where = (y >= 0).nonzero(as_tuple=True)
    losses = -torch.log_softmax(scores.float(), -1).gather(-1, y[where].unsqueeze(-1)).squeeze(-1)
    return torch.zeros(y.shape, dtype=losses.dtype, device=y.device).index_put(where, losses)


def mean_over_answers(losses: Tensor, y: Tensor) -> Tensor:
    """Return the mean of losses (B, L') over the tokens of each sample's answers, (B,), from y (B, L)."""
    return losses.sum(-1) / (y >= 0).sum(-1).clamp(min=1)


def token_hits(outputs: Tensor, y: Tensor) -> Tensor:
    """Return (B, L') bool: whether y has the highest of the scores. False where y is negative."""
    return outputs.argmax(-1) == answers(outputs, y)


class ExactMatch(Metric):
    """Share of answers of which every token has the highest score. A packed row has several answers."""

    batched = True

    def measure(self, outputs: Tensor, batch: Batch, segments: Tensor, count: int) -> Any:
        y, x = answers(outputs, batch["y"]), batch["x"]
        missed = (y >= 0) & (outputs.argmax(-1) != y)
        texts = x[:, : y.shape[1], 1] if x.ndim == 3 else torch.ones_like(y)
        right, given = (torch.zeros(count, dtype=torch.float64) for _ in range(2))
        for number in range(1, int(texts.max()) + 1):
            answered = ((texts == number) & (y >= 0)).any(-1)
            whole = answered & ~((texts == number) & missed).any(-1)
            right.index_add_(0, segments, whole.double().cpu())
            given.index_add_(0, segments, answered.double().cpu())
        return right, given

    def finish(self, acc: Any) -> float:
        right, given = acc
        return float(right / given) if given > 0 else float("nan")


def greedy(net: Callable[[Tensor], Tensor], prompt: Sequence[int], most: int, end: int) -> list[int]:
    """Return the tokens that a model writes after a prompt: the highest score each time, of equal ones the first.

    Args:
        net: ids (1, L) -> scores (1, L, V).
        prompt: the ids of the prompt.
        most: the largest number of tokens.
        end: id of the token after which it stops; it is not returned.
    """
    tokens = list(prompt)
    for _ in range(most):
        scores = net(torch.tensor([tokens], dtype=torch.int32))
        token = int(scores[0, -1].argmax())
        if token == end:
            break
        tokens.append(token)
    return tokens[len(prompt) :]


@register("task", "instruct")
@dataclass(frozen=True, kw_only=True)
class Instruct(LanguageModelling):
    """Answers to instructions, for `data: instructions`. Metrics loss, perplexity, accuracy and exact_match.

    Args:
        vocabulary: number of tokens. Default: the largest token in y plus 1; the model may know more.
        samples: number of rows of the server's test set, the first ones, for which answers are generated and kept in
            the run directory, at least 0.
        samples_every: rounds from one generation to the next, at least 1; also after the last round.
        max_new_tokens: the largest number of tokens of a generated answer, at least 1. An answer also ends where prompt
            and answer have as many tokens as the model takes.
        tokenizer: folder of the model, a .gguf file, or smollm2: turns the generated tokens into text. `samples` needs
            it.
        block: number of rows in one forward pass of an evaluation, at least 1. Memory grows with it: a row has as many
            scores as its tokens times the model's vocabulary.
    """

    samples: int = 0
    samples_every: int = 10
    max_new_tokens: int = 64
    tokenizer: str | None = None
    block: int = 32

    def __post_init__(self) -> None:
        super().__post_init__()
        not_negative(samples=self.samples)
        at_least(1, samples_every=self.samples_every, max_new_tokens=self.max_new_tokens, block=self.block)
        if self.samples and self.tokenizer is None:
            raise ValueError("tokenizer: missing; generated samples are text. Set it to data.tokenizer")

    @property
    def evaluation_block(self) -> int:
        return self.block

    def samples_due(self, round_: int, last: bool) -> bool:
        return bool(self.samples) and (last or (round_ + 1) % self.samples_every == 0)

    def check_samples(self, data: object) -> None:
        assert self.tokenizer is not None
        if (of_data := getattr(data, "tokenizer", self.tokenizer)) != self.tokenizer:
            raise ValueError(
                f"tokenizer: {self.tokenizer!r}, but the rows have tokens of {of_data!r} (data.tokenizer); set that"
            )
        ending(load_tokenizer(self.tokenizer), self.tokenizer)

    def loss(self, outputs: Tensor, batch: Batch) -> Tensor:
        return mean_over_answers(token_losses(outputs, batch["y"]), batch["y"])

    def objective(self, net: Callable[..., Any], batch: Batch) -> Tensor:
        y, own_loss = batch["y"], type(self).loss is not Instruct.loss
        if own_loss or not getattr(net, "takes_positions", False) or under_vmap(y):
            return super().objective(net, batch)
        return mean_over_answers(known_losses(net(batch["x"], where=y >= 0), y), y)

    def metrics(self) -> Mapping[str, Metric]:
        return {
            "loss": PerToken(token_losses),
            "perplexity": PerToken(token_losses, perplexity),
            "accuracy": PerToken(token_hits),
            "exact_match": ExactMatch(),
        }

    def generate(self, net: Callable[[Tensor], Tensor], rows: Mapping[str, Tensor]) -> list[dict[str, Any]]:
        """Return prompt, answer and generated text of the first rows; of a packed row the first text."""
        assert self.tokenizer is not None
        tokenizer = load_tokenizer(self.tokenizer)
        end, found = ending(tokenizer, self.tokenizer), []
        longest: int | None = getattr(net, "longest", None)
        for row in range(min(self.samples, len(rows["x"]))):
            x, y = rows["x"][row], rows["y"][row]
            if x.ndim == 2:
                x, y = x[x[:, 1] == 1, 0], y[x[:, 1] == 1]
            first = int((y >= 0).nonzero()[0])
            prompt = [int(token) for token in x[: first + 1]]
            answer = [int(token) for token in y[y >= 0] if int(token) != end]
            room = self.max_new_tokens if longest is None else longest - len(prompt)
            written = greedy(net, prompt, min(self.max_new_tokens, room), end)
            texts = (tokenizer.decode(tokens) for tokens in (prompt, answer, written))
            found.append({"row": row, **dict(zip(("prompt", "answer", "generated"), texts))})
        return found
