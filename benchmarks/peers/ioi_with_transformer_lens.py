"""CPU seconds of TransformerLens's own edge attribution on pairs of a model, one at a time."""

import json
import sys
from pathlib import Path

import torch
from measure import cpu
from torch import Tensor
from transformer_lens.model_bridge.sources._bridge_builder import build_bridge_from_module
from transformer_lens.tools.analysis import attribution_patching as tools
from transformers import AutoModelForCausalLM


def main() -> None:
    """Time one pair, and print the seconds of all pairs as JSON."""
    torch.set_num_threads(1)
    folder = Path(sys.argv[1])
    how = {"dtype": torch.float32, "attn_implementation": "eager"}
    hf_model = AutoModelForCausalLM.from_pretrained(folder, **how).eval()
    model = build_bridge_from_module(hf_model, "LlamaForCausalLM", hf_config=hf_model.config)
    batches = torch.load(folder / "batches.pt")
    clean, other, answer, foil = (part[:1] for part in batches[0])

    def lead(logits: Tensor) -> Tensor:
        return logits[0, -1, int(answer)] - logits[0, -1, int(foil)]

    config = tools.EdgeAttributionConfig(granularity="edge")
    seconds = cpu(lambda: tools.attribution_patch(model, clean, other, lead, config))
    pairs = sum(len(batch[0]) for batch in batches)
    print(json.dumps({"eap": pairs * seconds, "eap_ig": None}))


if __name__ == "__main__":
    main()
