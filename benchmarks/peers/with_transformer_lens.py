"""Cost of TransformerLens 4: `attribution_patch` and `faithfulness`, one prompt at a time."""

from measure import Run, Shape, report, tokens
from torch import Tensor
from transformer_lens.model_bridge.sources._bridge_builder import build_bridge_from_module
from transformer_lens.tools.analysis import attribution_patching as tools
from transformers import GPT2Config, GPT2LMHeadModel


def prepare(shape: Shape, job: str) -> Run | None:
    """Wrap a random GPT-2; there is no integrated-gradients variant to time.

    A circuit is a set of wires at positions; its recovery by class of wires comes with it.
    """
    if job == "eap_ig":
        return None
    config = GPT2Config(
        vocab_size=shape.vocab,
        n_positions=64,
        n_embd=shape.width,
        n_layer=shape.layers,
        n_head=shape.heads,
        bos_token_id=0,
        eos_token_id=0,
    )
    hf_model = GPT2LMHeadModel(config).eval()
    hf_model.set_attn_implementation("eager")
    model = build_bridge_from_module(hf_model, "GPT2LMHeadModel", hf_config=hf_model.config)
    drawn = tokens(shape)
    clean, corrupt = drawn.clean[:1], drawn.corrupt[:1]
    answer, foil = int(drawn.answer[0]), int(drawn.foil[0])

    def lead(logits: Tensor) -> Tensor:
        return logits[0, -1, answer] - logits[0, -1, foil]

    def eap() -> tools.AttributionResult:
        how = tools.EdgeAttributionConfig(granularity="edge")
        return tools.attribution_patch(model, clean, corrupt, lead, how)

    if job == "eap":
        return eap
    scored = eap()
    every = len(scored.edge_scores)
    assert every == shape.edges * shape.length, "the graph is another one"
    kept = scored.top_edges(every if job == "circuit_all" else every // 100)
    return lambda: tools.faithfulness(model, clean, corrupt, lead, kept)


if __name__ == "__main__":
    report(prepare, prompts=1)
