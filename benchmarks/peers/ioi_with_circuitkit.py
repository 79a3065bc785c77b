"""CPU seconds of CircuitKit's edge attribution on pairs of a model, fed with tokens."""

import json
import sys
from pathlib import Path

import torch
from circuitkit.backends.eap import attribute
from circuitkit.backends.eap.graph import Graph
from measure import STEPS, cpu
from torch import Tensor
from transformer_lens import HookedTransformer, HookedTransformerConfig
from transformer_lens.pretrained.weight_conversions import convert_llama_weights
from transformers import AutoModelForCausalLM

LOGIT_TOLERANCE = 1e-2


def load(folder: Path, ids: Tensor) -> HookedTransformer:
    """Model with the flags that CircuitKit's loader sets; its logits are those of the files."""
    hf_model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    given = hf_model.config
    rope = getattr(given, "rope_parameters", None) or {"rope_theta": given.rope_theta}
    size = given.hidden_size // given.num_attention_heads
    config = HookedTransformerConfig(
        n_layers=given.num_hidden_layers,
        d_model=given.hidden_size,
        n_ctx=64,
        d_head=size,
        n_heads=given.num_attention_heads,
        d_mlp=given.intermediate_size,
        d_vocab=given.vocab_size,
        act_fn="silu",
        normalization_type="RMS",
        eps=given.rms_norm_eps,
        final_rms=True,
        gated_mlp=True,
        positional_embedding_type="rotary",
        rotary_dim=size,
        rotary_base=int(rope["rope_theta"]),
        rotary_adjacent_pairs=False,
    )
    model = HookedTransformer(config)
    model.load_state_dict(convert_llama_weights(hf_model, config), strict=False)
    model.eval()
    model.set_use_attn_result(True)
    model.set_use_split_qkv_input(True)
    model.set_use_hook_mlp_in(True)
    with torch.no_grad():
        both = [logits[:, -1].log_softmax(-1) for logits in (model(ids), hf_model(ids).logits)]
        gap = float((both[0] - both[1]).abs().max())
    assert gap < LOGIT_TOLERANCE, f"its logits differ by {gap:.2g}"
    return model


def main() -> None:
    """Time both methods on all pairs, and print the seconds as JSON."""
    torch.set_num_threads(1)
    folder = Path(sys.argv[1])
    batches = torch.load(folder / "batches.pt")
    model = load(folder, batches[0][0][:2])
    graph = Graph.from_model(model)

    def ready(_: object, clean: Tensor, other: Tensor, *__: object, **___: object) -> tuple:
        ends = torch.full((len(clean),), clean.shape[1])
        return clean, other, None, None, ends, clean.shape[1]

    attribute.tokenize_batch_pair = ready
    pairs = [(clean, other, (answer, foil)) for clean, other, answer, foil in batches]

    def loss(logits: Tensor, _: object, __: object, labels: tuple[Tensor, Tensor]) -> Tensor:
        row, (answer, foil) = torch.arange(len(logits)), labels
        return -(logits[row, -1, answer] - logits[row, -1, foil]).sum()

    found = {
        "eap": cpu(lambda: attribute.get_scores_eap(model, graph, pairs, loss, quiet=True)),
        "eap_ig": cpu(
            lambda: attribute.get_scores_eap_ig(model, graph, pairs, loss, steps=STEPS, quiet=True)
        ),
    }
    print(json.dumps(found))


if __name__ == "__main__":
    main()
