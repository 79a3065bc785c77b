"""Cost of auto-circuit 1.0: edge attribution as the gradient of its masks, and circuits."""

import torch
from auto_circuit.data import PromptDataLoader, PromptDataset
from auto_circuit.prune import run_circuits
from auto_circuit.prune_algos.mask_gradient import mask_gradient_prune_scores
from auto_circuit.types import PatchType
from auto_circuit.utils.graph_utils import patchable_model
from measure import STEPS, Run, Shape, report, tokens
from transformer_lens import HookedTransformer, HookedTransformerConfig


def prepare(shape: Shape, job: str) -> Run:
    """Build the model as auto-circuit's own loader does: flags on, weights frozen."""
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
    plain = HookedTransformer(config)
    plain.cfg.use_attn_result = True
    plain.cfg.use_attn_in = True
    plain.cfg.use_split_qkv_input = True
    plain.cfg.use_hook_mlp_in = True
    plain.eval().requires_grad_(False)
    drawn = tokens(shape)
    pairs = PromptDataset(
        drawn.clean, drawn.corrupt, list(drawn.answer[:, None]), list(drawn.foil[:, None])
    )
    batches = PromptDataLoader(pairs, seq_len=None, diverge_idx=0, batch_size=shape.prompts)
    model = patchable_model(plain, True, slice_output="last_seq", separate_qkv=True)
    assert len(model.edges) == shape.edges, "the graph is another one"

    def attribute(samples: int | None) -> dict[str, torch.Tensor]:
        point = 0.0 if samples is None else None
        return mask_gradient_prune_scores(model, batches, None, "logit", "avg_diff", point, samples)

    if job == "eap":
        return lambda: attribute(None)
    if job == "eap_ig":
        return lambda: attribute(STEPS - 1)  # It takes both ends of the path: STEPS gradients.
    every = job == "circuit_all"
    scores = model.new_prune_scores(1.0) if every else attribute(None)
    kept = shape.edges if every else shape.edges // 100
    return lambda: run_circuits(model, batches, [kept], scores, PatchType.TREE_PATCH)


if __name__ == "__main__":
    report(prepare)
