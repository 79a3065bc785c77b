"""Cost of CircuitKit 0.2: its EAP, EAP-IG and circuits, fed with tokens instead of texts."""

import torch
from circuitkit.backends.eap import attribute, evaluate
from circuitkit.backends.eap.graph import Graph
from measure import STEPS, Run, Shape, report, tokens
from torch import Tensor
from transformer_lens import HookedTransformer, HookedTransformerConfig


def prepare(shape: Shape, job: str) -> Run:
    """Build model and graph with the flags that CircuitKit's loader sets."""
    config = HookedTransformerConfig(
        n_layers=shape.layers,
        d_model=shape.width,
        n_ctx=64,
        d_head=shape.width // shape.heads,
        n_heads=shape.heads,
        d_vocab=shape.vocab,
        act_fn="gelu_new",
        normalization_type="LN",
        seed=0,
    )
    model = HookedTransformer(config).eval()
    model.set_use_attn_result(True)
    model.set_use_split_qkv_input(True)
    model.set_use_hook_mlp_in(True)
    graph = Graph.from_model(model)
    assert len(graph.edges) == shape.edges, "the graph is another one"
    drawn = tokens(shape)
    ends = torch.full((shape.prompts,), shape.length)

    def ready(*_: object, **__: object) -> tuple:
        return drawn.clean, drawn.corrupt, None, None, ends, shape.length

    attribute.tokenize_batch_pair = evaluate.tokenize_batch_pair = ready
    batches = [(drawn.clean, drawn.corrupt, drawn.answer)]
    row = torch.arange(shape.prompts)

    def leads(logits: Tensor, *_: object) -> Tensor:
        last = logits[:, -1]
        return last[row, drawn.answer] - last[row, drawn.foil]

    def loss(*given: object) -> Tensor:
        return -leads(*given).sum()

    def eap() -> Tensor:
        return attribute.get_scores_eap(model, graph, batches, loss, quiet=True)

    def eap_ig() -> Tensor:
        return attribute.get_scores_eap_ig(model, graph, batches, loss, steps=STEPS, quiet=True)

    if job in ("eap", "eap_ig"):
        return eap if job == "eap" else eap_ig
    if job == "circuit_all":
        graph.reset(empty=False)
    else:
        graph.scores[:] = eap()
        graph.apply_topn(shape.edges // 100)
    return lambda: evaluate.evaluate_graph(model, graph, batches, leads, quiet=True)


if __name__ == "__main__":
    report(prepare)
