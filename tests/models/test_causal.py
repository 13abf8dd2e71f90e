"""Causal language models: scores are those of transformers, and the options change memory, not results."""

import importlib.util
import json
from pathlib import Path

import pytest
import torch
from torch import nn

import fl
from fl.errors import ConfigError
from fl.models.adapters.lora import DoRA, LoRA
from fl.models.architectures.causal import Causal
from fl.models.dropout import DropoutDraws, with_addressed_dropout
from fl.models.structure import structure
from fl.tasks.instruct import Instruct
from tests import tiny_language as tiny

LENGTH, OUTPUTS = 12, 20


@pytest.fixture(scope="module", params=["llama", "gpt2"])
def folder(request, tmp_path_factory) -> str:
    return tiny.save_model(tmp_path_factory.mktemp("model"), request.param)


@pytest.fixture(scope="module")
def llama(tmp_path_factory) -> str:
    return tiny.save_model(tmp_path_factory.mktemp("model"))


def ids(rows: int, length: int = LENGTH) -> torch.Tensor:
    return torch.randint(OUTPUTS, (rows, length), generator=torch.Generator().manual_seed(0)).int()


def reference(folder: str) -> nn.Module:
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(folder).eval()


def built(folder: str, shape=(LENGTH,), adapter=None, **arguments) -> nn.Module:
    torch.manual_seed(1)
    module = Causal(path=folder, **arguments).build(shape, OUTPUTS)
    return with_addressed_dropout(module if adapter is None else adapter.wrap(module))


def test_scores_are_those_of_transformers(folder):
    x = ids(3)
    x[0, 7:] = -1
    known = (x >= 0).long()
    expected = reference(folder)(input_ids=x.clamp(min=0).long(), attention_mask=known).logits
    torch.testing.assert_close(built(folder).eval()(x)[x >= 0], expected[x >= 0])


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_a_packed_text_has_the_scores_that_it_has_alone(folder, attention):
    texts, model = ids(2, 5), reference(folder)
    numbers = torch.tensor([1] * 5 + [2] * 5 + [0] * 2, dtype=torch.int32)
    row = torch.stack([torch.cat([texts.flatten(), torch.zeros(2)]).int(), numbers], -1)
    scores = built(folder, (LENGTH, 2), attention=attention).eval()(row[None])[0]
    assert scores.shape[0] == 10  # padding is left out
    torch.testing.assert_close(scores[:10].view(2, 5, -1), model(input_ids=texts.long()).logits)


@pytest.mark.parametrize("adapted", ["nothing", "the output layer"])
def test_the_loss_needs_scores_at_the_answers_alone(folder, adapted):
    """The loss of transformers: the mean over the labelled tokens. With an adapter the output layer scores all."""
    adapter = None if adapted == "nothing" else LoRA(rank=2, targets=("lm_head",))
    model, x = built(folder, adapter=adapter).eval(), ids(3)
    x[0, 9:] = -1
    y = torch.full(x.shape, -1)
    y[0, 5:8], y[1, 2:4] = torch.tensor([1, 4, 2]), torch.tensor([3, 0])  # row 2 has no answer
    shapes = []
    output = model.body.get_output_embeddings()
    output.register_forward_hook(lambda layer, inputs, scores: shapes.append(tuple(scores.shape[:-1])))
    losses = Instruct().objective(model, {"x": x, "y": y})
    assert shapes == [(5,) if adapter is None else (3, LENGTH)]
    for row in range(2):
        labels = torch.full((1, LENGTH), -100)
        labels[0, 1:] = y[row, :-1].masked_fill(y[row, :-1] < 0, -100)  # transformers shifts labels by one
        known = (x[row : row + 1] >= 0).long()
        expected = reference(folder)(
            input_ids=x[row : row + 1].clamp(min=0).long(), attention_mask=known, labels=labels
        )
        torch.testing.assert_close(losses[row], expected.loss)
    assert losses[2] == 0


LAST_LAYERS = {
    "llama": ("self_attn.q_proj", "self_attn.o_proj", "mlp"),
    "gpt2": ("attn.c_proj", "mlp"),
}


def test_the_last_block_works_at_the_answers_alone(folder):
    """Gradients are those of transformers, which computes all positions."""
    model, x = built(folder).eval(), ids(3)
    x[0, 9:] = -1
    y = torch.full(x.shape, -1)
    y[0, 5:8], y[1, 2:4] = torch.tensor([1, 4, 2]), torch.tensor([3, 0])  # row 2 has no answer
    kind = "gpt2" if hasattr(model.body, "transformer") else "llama"
    block = {"gpt2": "transformer.h.1", "llama": "model.layers.1"}[kind]
    assert model.last_layers == tuple(f"{block}.{name}" for name in LAST_LAYERS[kind])
    shapes = []
    for layer in model.last_layers:
        module = model.body.get_submodule(layer)
        module.register_forward_hook(lambda layer, inputs, y: shapes.append(tuple(inputs[0].shape[:2])))
    Instruct().objective(model, {"x": x, "y": y})[:2].sum().backward()
    assert shapes == [(3, 3)] * len(model.last_layers)  # the longest answer has 3 tokens
    expected = reference(folder)
    for row in range(2):
        labels = torch.full((1, LENGTH), -100)
        labels[0, 1:] = y[row, :-1].masked_fill(y[row, :-1] < 0, -100)
        known = (x[row : row + 1] >= 0).long()
        ids_ = x[row : row + 1].clamp(min=0).long()
        expected(input_ids=ids_, attention_mask=known, labels=labels).loss.backward()
    gradients = {name: p.grad for name, p in expected.named_parameters()}
    for name, parameter in model.body.named_parameters():
        by_inputs = kind == "gpt2" and ".c_" in name and name.endswith("weight")  # transformers' Conv1D
        wanted = gradients[name].T if by_inputs else gradients[name]
        torch.testing.assert_close(parameter.grad, wanted, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("kind", ["checkpointing", "dropout"])
def test_a_second_pass_and_dropout_need_all_positions(llama, kind):
    """A second pass calls all layers again, and masks are those of the whole batch."""
    checkpointing = kind == "checkpointing"
    adapter = LoRA(rank=2, targets=("all-linear",), dropout=0.0 if checkpointing else 0.5)
    model, x, shapes = built(llama, adapter=adapter, checkpointing=checkpointing).eval(), ids(3), []
    layer = model.body.get_submodule("model.layers.1.mlp")
    layer.register_forward_hook(lambda layer, inputs, y: shapes.append(tuple(inputs[0].shape[:2])))
    Instruct().objective(model, {"x": x, "y": torch.where(torch.arange(LENGTH) > 8, x.long(), -1)})
    assert shapes == [(3, LENGTH)]


def test_scores_with_a_scale_are_computed_whole(tmp_path):
    """Granite divides the output layer's scores by `logits_scaling`."""
    from transformers import GraniteConfig, GraniteForCausalLM

    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    torch.manual_seed(0)
    GraniteForCausalLM(GraniteConfig(vocab_size=32, logits_scaling=3.0, **sizes)).save_pretrained(tmp_path)
    model, x = built(str(tmp_path)).eval(), ids(2)
    y = torch.where(torch.arange(LENGTH) > 8, x.long(), -1)
    task = Instruct()
    assert not model.output_apart
    assert torch.equal(task.objective(model, {"x": x, "y": y}), task.loss(model(x), {"y": y}))


def test_adapters_change_the_layers_of_the_architecture_and_never_the_output_layer(llama):
    def adapted(**arguments):
        return {
            n.split(".")[-4] for n, p in built(llama, adapter=LoRA(**arguments)).named_parameters() if p.requires_grad
        }

    assert adapted() == {"q_proj", "v_proj"}
    assert adapted(targets=("all-linear",)) == {
        "q_proj",
        "k_proj",
        "v_proj",
        "o_proj",
        "gate_proj",
        "up_proj",
        "down_proj",
    }
    assert adapted(targets=("o_proj",)) == {"o_proj"}


def test_dora_is_a_direction_and_a_length(llama):
    module = built(llama, adapter=DoRA(rank=2, alpha=4, targets=("o_proj",)))
    layer = module.get_submodule("body.model.layers.0.self_attn.o_proj")
    a, b = layer.lora_A["default"].weight, layer.lora_B["default"].weight
    m = layer.lora_magnitude_vector["default"].weight
    with torch.no_grad():
        b.normal_()
        m.mul_(1.5)
        changed = layer.base_layer.weight + 2 * b @ a
        x = torch.randn(3, 32)
        torch.testing.assert_close(layer(x), x @ (m[:, None] * changed / changed.norm(dim=1, keepdim=True)).T)


def gradients(module: nn.Module, x: torch.Tensor) -> list[torch.Tensor]:
    module.train()
    torch.manual_seed(2)
    for name, parameter in module.named_parameters():
        if "lora_B" in name:  # it begins with zeros, under which A has no gradient
            nn.init.normal_(parameter)
    draws = DropoutDraws(structure(module).dropout, (5,), repeats=False)
    draws.begin_batch(0)
    with draws.gradient():
        loss = module(x).float().log_softmax(-1).square().mean()
        return list(torch.autograd.grad(loss, [p for p in module.parameters() if p.requires_grad]))


@pytest.mark.parametrize("dropout", [0.0, 0.4])
def test_checkpointing_changes_no_gradient(folder, dropout):
    adapter = LoRA(rank=2, dropout=dropout)
    plain, checkpointed = (
        gradients(built(folder, adapter=adapter, checkpointing=flag), ids(2)) for flag in (False, True)
    )
    assert all(torch.equal(a, b) for a, b in zip(plain, checkpointed))
    if dropout:
        assert not torch.equal(plain[0], gradients(built(folder, adapter=LoRA(rank=2)), ids(2))[0])


@pytest.fixture(scope="module")
def files(llama, tmp_path_factory) -> tuple[str, str, str]:
    place = tmp_path_factory.mktemp("rows")
    return llama, tiny.save_rows(place / "train.jsonl", tiny.rows()), tiny.save_rows(place / "test.jsonl", tiny.rows(6))


@pytest.mark.parametrize("checkpointing", [False, True])
def test_micro_batches_have_the_gradients_of_the_batch(files, tmp_path, checkpointing):
    adapter = {"name": "lora", "rank": 2, "dropout": 0.4}
    common = {"model.adapter": adapter, "execution.plan": "loop", "rounds": 1, "model.checkpointing": checkpointing}
    whole, pieces = (
        fl.run(tiny.config(*files, **common, **{"execution.micro_batch": size}), out=tmp_path / str(size)).model
        for size in (None, 3)
    )
    for name in whole:
        torch.testing.assert_close(pieces[name], whole[name], rtol=1e-4, atol=1e-6)


def test_bfloat16_is_the_type_of_the_base_alone(llama):
    module = built(llama, adapter=LoRA(rank=2), precision="bfloat16")
    assert {p.dtype for p in module.parameters() if p.requires_grad} == {torch.float32}
    assert {p.dtype for p in module.parameters() if not p.requires_grad} == {torch.bfloat16}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model.path": "nowhere"}, "neither a folder with a config.json, nor a .gguf file, nor one of"),
        ({"model.bits": 4}, "needs the package bitsandbytes"),
        ({"data.length": 65}, "takes 64 tokens; set data.length"),
        ({"model.adapter": {"name": "dora"}, "strategy": "flora"}, "is not a product B A; set lora or rslora"),
        ({"strategy": {"name": "fedex_lora", "ranks": [2, 4]}}, "ranks: not a key of 'fedex_lora'"),
        ({"task.samples": 1, "data.test": None}, "the server has no test rows"),
        ({"task.tokenizer": None}, "generated samples are text"),
        ({"task.tokenizer": "nowhere", "task.samples": 1}, "task.tokenizer: 'nowhere', but the rows have"),
        ({"task.vocabulary": 0}, "task.vocabulary: 0 is not at least 1"),
        ({"task": "language_modelling"}, "y has 16; with model: causal set task: instruct"),
    ],
)
def test_refusals_come_before_round_0(files, tmp_path, change, message):
    if "model.bits" in change and importlib.util.find_spec("bitsandbytes"):
        pytest.skip("bitsandbytes is installed")
    with pytest.raises(ConfigError, match=message):
        fl.run(tiny.config(*files, **change), out=tmp_path / "run")


# -- 4 and 8 bits -----------------------------------------------------------------------------------------------------
@pytest.mark.filterwarnings("ignore")  # of bitsandbytes, about types and kernels
def test_quantised_weights_have_the_gradients_of_the_dequantised_ones(tmp_path):
    """After an evaluation too: bitsandbytes would then pack the weights, and packed weights pass no gradient on."""
    functional = pytest.importorskip("bitsandbytes.functional")
    folder = tiny.save_model(tmp_path / "model", width=64)
    module = built(folder, adapter=LoRA(rank=2, targets=("all-linear",)), bits=4)
    with torch.no_grad():
        module.eval()(ids(2))
    plain = built(folder, adapter=LoRA(rank=2, targets=("all-linear",)))
    for name, layer in module.named_modules():
        if type(layer).__name__ == "Linear4bit":
            weight = functional.dequantize_4bit(layer.weight.data, layer.weight.quant_state)
            plain.get_submodule(name).weight.data.copy_(weight)
    for found, expected in zip(gradients(module, ids(2)), gradients(plain, ids(2))):
        torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-6)


@pytest.mark.ray
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("bits", [4, 8])
def test_quantised_runs_have_the_same_bits_on_workers(files, tmp_path, bits):
    pytest.importorskip("bitsandbytes")
    changes = {"model.bits": bits, "rounds": 1}
    serial = fl.run(tiny.config(*files, **changes), out=tmp_path / "serial")
    workers = {"execution.executor": "ray", "execution.workers": 2}
    ray = fl.run(tiny.config(*files, **changes, **workers), out=tmp_path / "ray")
    assert ray.digest == serial.digest


def test_no_code_of_a_folder_is_executed(llama, tmp_path):
    folder = Path(tiny.save_model(tmp_path / "model"))
    settings = json.loads((folder / "config.json").read_text())
    marker = tmp_path / "executed"
    code = f"open({str(marker)!r}, 'w')\nfrom transformers import LlamaConfig as Own\n"
    (folder / "own.py").write_text(code)
    settings |= {"model_type": "own", "auto_map": {"AutoConfig": "own.Own", "AutoModelForCausalLM": "own.Own"}}
    (folder / "config.json").write_text(json.dumps(settings))
    with pytest.raises(ValueError, match="cannot be loaded: it needs Python code of its own, which is not executed"):
        Causal(path=str(folder)).build((LENGTH,), OUTPUTS)
    assert not marker.exists()


def test_weights_in_a_pickle_are_refused(tmp_path):
    folder = Path(tiny.save_model(tmp_path / "model"))
    tensors = folder / "model.safetensors"
    torch.save({}, folder / "pytorch_model.bin")
    tensors.unlink()
    with pytest.raises(ValueError, match="safetensors"):
        Causal(path=str(folder)).build((LENGTH,), OUTPUTS)


def test_weights_that_lack_tensors_or_are_damaged_are_refused(tmp_path):
    """transformers gives random values to what a file lacks."""
    folder = Path(tiny.save_model(tmp_path / "model"))
    settings = json.loads((folder / "config.json").read_text())
    for change, message in (
        ({"num_hidden_layers": 3}, "lacks 9 tensors of LlamaForCausalLM, the first is 'model.layers.2"),
        ({"intermediate_size": 48}, "weights and config.json differ in shapes"),
    ):
        (folder / "config.json").write_text(json.dumps(settings | change))
        with pytest.raises(ValueError, match=f"path: .*{message}"):
            Causal(path=str(folder)).build((LENGTH,), OUTPUTS)
    (folder / "model.safetensors").write_bytes(b"no tensors at all")
    with pytest.raises(ValueError, match="path: .* cannot be loaded"):
        Causal(path=str(folder)).build((LENGTH,), OUTPUTS)


def test_a_model_of_another_kind_is_refused(tmp_path):
    from transformers import T5Config, T5ForConditionalGeneration

    sizes = {"d_model": 8, "d_kv": 4, "d_ff": 8, "num_layers": 1, "num_heads": 2}
    T5ForConditionalGeneration(T5Config(vocab_size=OUTPUTS, **sizes)).save_pretrained(tmp_path / "t5")
    with pytest.raises(ValueError, match="no causal model of the type 't5' in its config.json$"):
        Causal(path=str(tmp_path / "t5")).build((LENGTH,), OUTPUTS)


@pytest.mark.parametrize("decoder", [False, True])
def test_a_model_that_sees_later_tokens_is_refused(tmp_path, decoder):
    from transformers import BertConfig, BertLMHeadModel

    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    BertLMHeadModel(BertConfig(vocab_size=OUTPUTS, is_decoder=decoder, **sizes)).save_pretrained(tmp_path / "bert")
    model = Causal(path=str(tmp_path / "bert"))
    if decoder:
        assert model.build((LENGTH,), OUTPUTS)(ids(1)).shape == (1, LENGTH, OUTPUTS)
    else:
        with pytest.raises(ValueError, match="path: .* sees the tokens after it"):
            model.build((LENGTH,), OUTPUTS)


def test_a_model_that_cannot_pack_is_refused(tmp_path):
    """RoBERTa counts positions after its padding token, so position 0 is another."""
    from transformers import RobertaConfig, RobertaForCausalLM

    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    config = RobertaConfig(vocab_size=OUTPUTS, is_decoder=True, **sizes)
    RobertaForCausalLM(config).save_pretrained(tmp_path / "model")
    model = Causal(path=str(tmp_path / "model"))
    assert model.build((LENGTH,), OUTPUTS)(ids(1)).shape == (1, LENGTH, OUTPUTS)
    with pytest.raises(ValueError, match="path: .*several texts in a row; set data.pack: false"):
        model.build((LENGTH, 2), OUTPUTS)
