"""Accuracy and logit differences of pretrained models on the shipped patterns, beside plain torch.

The columns `plain` are one forward pass of transformers for each question, tokenized as plain text.

Run with `python -m benchmarks.real_patterns MODEL_FOLDER [QUESTIONS]`.
"""

import sys
from collections.abc import Iterator, Sequence
from itertools import takewhile

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerBase

from probes.files import data_folder
from probes.models.model import load
from probes.observe.gate import answer_questions
from probes.prompts.catalog import list_patterns
from probes.prompts.question import Question
from probes.prompts.tokens.pair_batch import tokenizable_by


def plain_answer(
    model: torch.nn.Module, tokenizer: PreTrainedTokenizerBase, question: Question
) -> tuple[bool, float, bool]:
    """Greedy accuracy, logit difference, and whether the first answer beats each foil."""
    outcomes = question.outcomes[0][1]
    texts = [question.append(question.text, outcome) for outcome in outcomes]
    ids = [tokenizer(text)["input_ids"] for text in texts]
    answer, foils = ids[0], ids[1:]
    prompt = tokenizer(question.text)["input_ids"]
    n_prompt = common_length(prompt, answer)
    logits = model(torch.tensor([answer])).logits[0]
    greedy = all(int(logits[n - 1].argmax()) == answer[n] for n in range(n_prompt, len(answer)))
    if outcomes[0].isdigit():  # A digit behind it makes another number.
        greedy &= not tokenizer.convert_ids_to_tokens([int(logits[-1].argmax())])[0][:1].isdigit()
    starts = [common_length(answer, foil) for foil in foils]
    start = min(starts)
    # Foils of one first token, such as 1 and 10 read digit by digit, count once.
    read = list({foil[start] for foil, n in zip(foils, starts, strict=True) if n == start})
    difference = logits[start - 1, answer[start]] - logits[start - 1, read].mean()
    if not all(n < len(answer) for n in starts):
        return greedy, float(difference), False
    chosen = all(
        float(logits[n - 1, answer[n]]) > float(logits[n - 1, foil[n]])
        for foil, n in zip(foils, starts, strict=True)
    )
    return greedy, float(difference), chosen


def common_length(one: Sequence[int], other: Sequence[int]) -> int:
    """Number of first tokens that two texts share."""
    pairs = zip(one, other, strict=False)
    return sum(1 for _ in takewhile(lambda both: both[0] == both[1], pairs))


def rows(folder: str, count: int) -> Iterator[str]:
    """One line a pattern."""
    ours = load(folder)
    plain = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    for name, pattern in list_patterns(data_folder() / "real_patterns.toml").items():
        questions = pattern.sample_questions(count, seed=0, keep=tokenizable_by(tokenizer))
        behavior = answer_questions(ours, questions)
        with torch.no_grad():
            theirs = [plain_answer(plain, tokenizer, question) for question in questions]
        greedy, differences, chosen = (
            torch.tensor(column).double() for column in zip(*theirs, strict=True)
        )
        gap = (behavior.logit_diff[:, 0].double() - differences).abs().max()
        yield (
            f"| {name} | {float(behavior.correct[:, 0].double().mean()):.2f} | {greedy.mean():.2f} "
            f"| {float(behavior.logit_diff[:, 0].double().mean()):.2f} | {differences.mean():.2f} "
            f"| {gap:.0e} | {chosen.mean():.2f} |"
        )


if __name__ == "__main__":
    folder, *rest = sys.argv[1:]
    print(
        "| pattern | accuracy | plain | logit difference | plain | largest gap | above all foils |"
    )
    print("|---|---|---|---|---|---|---|")
    for line in rows(folder, int(rest[0]) if rest else 60):
        print(line, flush=True)
