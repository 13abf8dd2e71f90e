"""Instructions as a task: losses by torch, greedy generation by transformers, metrics that pool exactly."""

import shutil

import numpy as np
import pytest
import torch

import fl
from fl.data.packing import Text, packed, padded
from fl.models.architectures.causal import Causal
from fl.tasks.instruct import Instruct, greedy
from tests import tiny_language as tiny

TEXTS = [Text([2, 3, 4], [5, 1]), Text([6, 7], [8, 9, 1]), Text([3], [4, 1]), Text([9, 2], [2, 2])]


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> str:
    return tiny.save_model(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def net(folder):
    return Causal(path=folder).build((8,), 12).eval()


def batch_of(texts) -> dict[str, torch.Tensor]:
    return dict(zip("xy", map(torch.from_numpy, padded(texts, 8))))


def measured(net, batch, owners) -> tuple[dict[str, float], dict[str, np.ndarray]]:
    """Return each metric of all rows, and of each owner."""
    whole, each = {}, {}
    with torch.no_grad():
        outputs = net(batch["x"])
    for name, metric in Instruct().metrics().items():
        acc = metric.measure(outputs, batch, torch.tensor(owners), max(owners) + 1)
        each[name] = metric.each(acc, max(owners) + 1)
        whole[name] = metric.finish(tuple(part.sum() for part in acc))
    return whole, each


def test_the_loss_of_a_sample_is_the_mean_over_its_answer(net):
    batch = batch_of(TEXTS)
    losses = Instruct().loss(net(batch["x"]), batch)
    for text, loss in zip(TEXTS, losses):
        tokens = torch.tensor([*text.prompt, *text.answer])
        scores = net.body(input_ids=tokens[None]).logits[0, len(text.prompt) - 1 : -1]
        torch.testing.assert_close(loss, torch.nn.functional.cross_entropy(scores, torch.tensor(text.answer)))


def test_metrics_are_sums_over_tokens_and_answers(net):
    whole, _ = measured(net, batch_of(TEXTS), [0, 0, 0, 0])
    parts, _ = zip(*(measured(net, batch_of([text]), [0]) for text in TEXTS))
    tokens = np.array([len(text.answer) for text in TEXTS])
    assert whole["loss"] == pytest.approx(np.average([part["loss"] for part in parts], weights=tokens), rel=1e-6)
    assert whole["perplexity"] == pytest.approx(np.exp(whole["loss"]))
    assert whole["accuracy"] == pytest.approx(np.average([part["accuracy"] for part in parts], weights=tokens))
    assert whole["exact_match"] == np.mean([part["exact_match"] for part in parts])


def test_clients_together_have_the_metrics_of_all_rows(net):
    batch = batch_of(TEXTS)
    for name, metric in Instruct().metrics().items():
        outputs = net(batch["x"]).detach()
        one = metric.measure(outputs, batch, torch.zeros(4, dtype=torch.long), 1)
        two = metric.measure(outputs, batch, torch.tensor([0, 1, 1, 0]), 2)
        merged = metric.merge(tuple(part[0] for part in two), tuple(part[1] for part in two))
        assert metric.finish(merged) == pytest.approx(metric.finish(tuple(part[0] for part in one)), rel=1e-12), name


def test_packed_rows_have_the_metrics_of_padded_rows(net):
    x, y = map(torch.from_numpy, packed([TEXTS[:2], TEXTS[2:]], 8))
    whole, _ = measured(net, batch_of(TEXTS), [0] * 4)
    together, _ = measured(net, {"x": x, "y": y}, [0, 0])
    assert together == pytest.approx(whole, rel=1e-5)


def generated(net, prompt, most: int) -> list[int]:
    """Return what transformers generates greedily."""
    ids = torch.tensor([prompt])
    with torch.no_grad():
        found = net.body.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=most,
            do_sample=False,
            eos_token_id=1,
            pad_token_id=1,
        )
    return found[0, len(prompt) :].tolist()


def test_exact_match_is_that_of_greedy_generation(net):
    prompts = [[2, 3, 4], [6, 7], [5, 5, 5]]
    answers = [generated(net, prompt, 4) for prompt in prompts]
    right = [Text(prompt, answer) for prompt, answer in zip(prompts, answers)]
    wrong = [Text(prompt, [*answer[:-1], (answer[-1] + 1) % 12]) for prompt, answer in zip(prompts, answers)]
    assert measured(net, batch_of(right), [0] * 3)[0]["exact_match"] == 1
    _, each = measured(net, batch_of([right[0], wrong[1], wrong[2]]), [0, 1, 1])
    assert each["exact_match"].tolist() == [1, 0]


def test_greedy_writes_what_transformers_generates(net):
    for prompt in ([2, 3, 4], [6, 7]):
        end = generated(net, prompt, 5)
        with torch.no_grad():
            assert greedy(net, prompt, 5, 1) == [token for token in end if token != 1]


def test_an_answer_ends_where_the_model_takes_no_more_tokens(tmp_path):
    """gpt2 has one vector for each position."""
    folder = tiny.save_model(tmp_path / "model", kind="gpt2")
    task = Instruct(samples=1, tokenizer=folder, max_new_tokens=64)
    net = Causal(path=folder).build((64,), 12)
    x, y = torch.full((1, 63), 2, dtype=torch.int32), torch.full((1, 63), -100)
    y[0, 59] = 3
    with torch.no_grad():
        net.body.get_output_embeddings().weight.zero_()  # all scores are equal: token 0, again and again
        (found,) = task.generate(net, {"x": x, "y": y})
    assert found["generated"] == " ".join(["<unk>"] * 4)  # 60 of 64 positions are the prompt's


def test_samples_are_kept_every_k_rounds_and_after_the_last(folder, tmp_path):
    train, test = (tiny.save_rows(tmp_path / f"{n}.jsonl", tiny.rows(n)) for n in (12, 6))
    config = tiny.config(folder, train, test, rounds=5, **{"task.samples_every": 2, "task.samples": 3})
    out = fl.run(config, out=tmp_path / "run").directory / "samples"
    assert sorted(file.name for file in out.iterdir()) == ["round_1.jsonl", "round_3.jsonl", "round_4.jsonl"]
    assert all(len(file.read_text().splitlines()) == 3 for file in out.iterdir())


def test_samples_are_read_with_the_tokenizer_of_the_data(folder, tmp_path):
    rows = tiny.save_rows(tmp_path / "rows.jsonl", tiny.rows(6))
    other = shutil.copytree(folder, tmp_path / "other")
    with pytest.raises(fl.ConfigError, match=r"task\.tokenizer: '.*other', but the rows have tokens of '"):
        fl.run(tiny.config(folder, rows, rows, **{"task.tokenizer": str(other)}), out=tmp_path / "run")


class Halved(Instruct):
    def loss(self, outputs, batch):
        return 0.5 * super().loss(outputs, batch)


def test_a_loss_of_a_subclass_is_trained(net):
    batch = batch_of(TEXTS)
    with torch.no_grad():
        whole, half = (task.objective(net, batch) for task in (Instruct(), Halved()))
    torch.testing.assert_close(half, 0.5 * whole)
