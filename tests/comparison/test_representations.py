"""Likeness of states is that of the plain formulas, and of nothing where there is nothing."""

import numpy as np
import pytest
from scipy.spatial.distance import pdist
from scipy.stats import spearmanr

import probes
from probes.comparison.representations.compare import ALL, representation_similarity
from probes.comparison.representations.kernels import (
    RoleKernels,
    center_pairs,
    center_within_classes,
    gram_matrices,
    inner_products,
    permute_within_classes,
    rank_matrices,
)
from probes.comparison.representations.measures import cka, procrustes
from probes.comparison.representations.moments import moments
from probes.errors import BatchError, ModelError, SiteError
from probes.models.model import wrap
from probes.observe.role_states import capture_role_states
from probes.testing.tiny_models import tiny, tiny_hf

PROMPTS = 60


def drawn(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape)


def ratio(a, b):
    as_is = [np.arange(a.shape[1])]
    return inner_products(a, b, as_is)[0] / np.sqrt(
        np.outer(np.square(a).sum((1, 2)), np.square(b).sum((1, 2)))
    )


def kernel(x, classes):
    return center_within_classes(gram_matrices(x[None], classes), classes)


def hsic(x, y):
    """Song et al. 2012, one sum after another."""
    n = len(x)
    k, other = (z @ z.T * (1 - np.eye(n)) for z in (x, y))
    whole = (k * other).sum() + k.sum() * other.sum() / ((n - 1) * (n - 2))
    return (whole - 2 / (n - 2) * (k @ other).sum()) / (n * (n - 3))


def hsic_within(x, y, classes):
    """Products of different classes' covariances, and each class's own without bias."""
    sizes = {c: int((classes == c).sum()) for c in np.unique(classes)}
    kept = [c for c, size in sizes.items() if size > 1]
    weight = {c: sizes[c] / sum(sizes[k] for k in kept) for c in kept}
    total = 0.0
    for c in kept:
        for d in kept:
            mine, theirs = classes == c, classes == d
            if c == d and sizes[c] > 3:
                total += weight[c] ** 2 * hsic(x[mine], y[mine])
            elif c != d:
                one, other = (
                    (x[s] - x[s].mean(0)).T @ (y[s] - y[s].mean(0)) / (s.sum() - 1)
                    for s in (mine, theirs)
                )
                total += weight[c] * weight[d] * (one * other).sum()
    return total


def test_of_one_class_the_kernels_give_debiased_cka():
    x, y, one = drawn(40, 6), drawn(40, 9, seed=1), np.zeros(40, dtype=np.int64)
    y[:, :6] += x
    found = ratio(kernel(x, one), kernel(y, one))[0, 0]
    assert found == pytest.approx(cka(moments(x, y)), abs=1e-12)


def test_within_classes_the_kernels_give_what_classes_give_one_by_one():
    classes = np.array([0] * 9 + [1] * 4 + [2] * 3 + [3] * 2 + [4])
    classes = np.random.default_rng(0).permutation(classes)
    x = drawn(19, 5) + 3 * drawn(5, 5, seed=2)[classes]
    y = x[:, :3] + drawn(19, 3, seed=1)
    wanted = hsic_within(x, y, classes)
    assert (kernel(x, classes) * kernel(y, classes)).sum() == pytest.approx(wanted, abs=1e-9)


def test_what_hangs_on_the_token_alone_is_no_likeness_given_the_token():
    found, plain = [], []
    for seed in range(20):
        rng = np.random.default_rng(seed)
        classes = rng.integers(0, 20, 200)
        x, y = (rng.normal(size=(20, 64))[classes] * 2 + rng.normal(size=(200, 64)) for _ in "xy")
        found.append(ratio(kernel(x, classes), kernel(y, classes))[0, 0])
        plain.append(cka(moments(x, y)))
    assert np.mean(plain) > 0.5
    assert abs(np.mean(found)) < 3 * np.std(found) / np.sqrt(20)
    assert np.std(found) < 0.03


def test_what_is_shared_beside_the_token_is_found_given_the_token():
    classes = np.random.default_rng(0).integers(0, 20, 200)
    shared = drawn(200, 64)
    x, y = (shared + 2 * drawn(20, 64, seed=n)[classes] for n in (1, 2))
    assert ratio(kernel(x, classes), kernel(y, classes))[0, 0] == pytest.approx(1)


def test_states_that_differ_by_rounding_alone_count_as_alike():
    classes = np.arange(40) % 4
    token = drawn(4, 8)[classes] * 100
    noisy = (token + 1e-5 * drawn(40, 8, seed=1))[None]
    assert not gram_matrices(noisy, classes).any()
    assert gram_matrices(noisy, np.zeros(40, dtype=np.int64)).any()


def test_rankings_give_spearmans_correlation():
    x, y = drawn(30, 4), drawn(30, 4, seed=1)
    y += x
    one = np.zeros(30, dtype=np.int64)
    a, b = (center_pairs(rank_matrices(z[None]), one) for z in (x, y))
    assert ratio(a, b)[0, 0] == pytest.approx(spearmanr(pdist(x), pdist(y)).statistic, abs=1e-4)


def test_prompts_stand_in_for_those_of_their_class_alone():
    classes = np.random.default_rng(0).integers(0, 5, 50)
    order = permute_within_classes(classes, np.random.default_rng(1).random(50))
    assert sorted(order) == list(range(50))
    assert (classes[order] == classes).all()
    assert (order != np.arange(50)).mean() > 0.6


def test_intervals_hold_the_true_value_about_as_often_as_they_say():
    held = []
    there, classes = np.ones((1, 80), dtype=bool), [np.zeros(80, dtype=np.int64)]
    truth = 4 / 9  # covariance 2/3 of both variances, in every dimension alike
    for seed in range(60):
        shared = drawn(80, 6, seed=seed)
        x, y = (np.sqrt(2) * shared + drawn(80, 6, seed=seed + s) for s in (1000, 2000))
        sites = [z[None, None] for z in (x, y)]
        pairs = RoleKernels.of("cka", (sites[0], sites[1]), classes, there)
        low, high = pairs.jackknife(pairs.similarities(np.empty((0, 80)))[:, 0])
        held.append(low[0, 0, 0] < truth < high[0, 0, 0])
    assert 0.85 <= np.mean(held) <= 1


@pytest.fixture(scope="module")
def models():
    return {name: probes.load(name) for name in ("full", "full-b", "distilled", "distilled-narrow")}


@pytest.fixture(scope="module")
def pattern():
    return probes.pattern("take-away")


@pytest.fixture(scope="module")
def found(models, pattern):
    a, b, another = (models[name] for name in ("full", "distilled", "full-b"))
    return representation_similarity(
        a, b, pattern, prompts=PROMPTS, other_seed=another, permutations=5
    )


def test_each_number_is_that_of_the_states_at_the_role(models, pattern, found):
    questions = pattern.sample_questions(PROMPTS, seed=0)
    a, b = (capture_role_states(models[name], questions) for name in ("full", "distilled"))
    x, y = (s.states[s.roles.index("op"), layer] for s, layer in ((a, 3), (b, 1)))
    at = found["cka"].roles.index("op")
    assert found["cka"].value[at, 3, 1] == pytest.approx(cka(moments(x, y)), abs=1e-6)
    wanted = spearmanr(pdist(x), pdist(y)).statistic
    assert found["rsa"].value[at, 3, 1] == pytest.approx(wanted, abs=1e-3)


def test_procrustes_is_that_of_all_roles_together_less_their_means(models, pattern, found):
    questions = pattern.sample_questions(PROMPTS, seed=0)
    rows = []
    for name, layer in (("full", 4), ("distilled", 2)):
        seen, sites = capture_role_states(models[name], questions), []
        for role in found.counts:
            own = seen.present[seen.roles.index(role)]
            states = seen.states[seen.roles.index(role), layer]
            first = own & (np.arange(PROMPTS) < PROMPTS // 2)
            sites.append(states[own] - states[first].mean(0))
        rows.append(np.concatenate(sites))
    wanted = procrustes(moments(*rows))
    assert found["procrustes"].value[0, 4, 2] == pytest.approx(wanted, abs=1e-6)


def test_states_are_those_of_the_last_token_of_the_role(models, pattern):
    questions = pattern.sample_questions(8, seed=0)
    batch = probes.tokenize(models["full"].tokenizer, questions)
    seen = capture_role_states(models["full"], questions)
    resid = probes.capture(models["full"], batch, ("resid",))["resid"]
    for role in ("op", "answer", "name"):
        at = seen.roles.index(role)
        for prompt in np.flatnonzero(seen.present[at]):
            last = int(batch.role_mask(role)[prompt].nonzero().max())
            assert seen.tokens[at, prompt] == batch.ids[prompt, last]
            wanted = resid[:, prompt, last].numpy()
            np.testing.assert_allclose(seen.states[at, :, prompt], wanted, atol=1e-4)


def test_measures_have_their_layers_chance_and_floor(found):
    assert list(found.measures) == [
        *("cka", "cka given token", "rsa", "procrustes"),
        *("predictivity a → b", "predictivity b → a"),
    ]
    at = found["cka"].roles.index("op")
    for likeness in found.measures.values():
        assert likeness.value.shape == (len(likeness.roles), 5, 3)
        assert likeness.other_seed.shape == (len(likeness.roles), 5)
        assert likeness.roles[-1] == ALL
        top = likeness.value[-1, 4, 2]
        assert top > likeness.chance_high[-1, 4, 2] + 0.2
        assert np.isfinite(likeness.other_seed[-1, 4])
    cka_found = found["cka"]
    assert abs(cka_found.chance[at, 4, 2]) < 0.1
    assert cka_found.low[at, 4, 2] < cka_found.value[at, 4, 2] < cka_found.high[at, 4, 2]
    assert np.isnan(found["procrustes"].low).all()


def test_roles_stand_in_the_order_of_the_text_without_those_that_say_nothing(found):
    roles = found["cka"].roles
    assert not {"bos", "rest", "reply_noun"} & set(roles)
    assert roles.index("answer") < roles.index("reply_number") < roles.index(ALL)
    assert found.counts["op"] == PROMPTS
    assert all(found.token_counts[role] <= count for role, count in found.counts.items())


def test_a_token_that_is_always_the_same_has_no_likeness_before_the_first_block(found):
    at = found["cka"].roles.index("answer")
    for measure in ("cka", "rsa"):
        assert np.isnan(found[measure].value[at, 0]).all()
        assert np.isfinite(found[measure].value[at, 1:, 1:]).all()
    assert np.isnan(found["cka given token"].value[:, 0]).all()


def test_a_model_is_itself_and_its_own_floor(models, pattern):
    a = models["distilled"]
    found = representation_similarity(
        a, a, pattern, prompts=40, other_seed=a, permutations=1, roles=["op", "y"]
    )
    assert list(found.counts) == ["op", "y"]
    for name in ("cka", "cka given token", "rsa", "procrustes"):
        likeness = found[name]
        own = np.diagonal(likeness.value, axis1=1, axis2=2)
        assert np.nanmin(own) == pytest.approx(1, abs=1e-6)
        np.testing.assert_allclose(own, likeness.other_seed)
    assert found["predictivity a → b"].value[0, -1, -1] > 0.7


def test_the_table_holds_every_number(found):
    table = found.table()
    assert len(table) == sum(likeness.value.size for likeness in found.measures.values())
    row = table.query("measure == 'rsa' and role == 'y' and layer_a == 2 and layer_b == 1").iloc[0]
    at = found["rsa"].roles.index("y")
    assert row["value"] == found["rsa"].value[at, 2, 1]
    assert row["chance_high"] == found["rsa"].chance_high[at, 2, 1]
    assert row["floor"] == found["rsa"].other_seed[at, 2]


def test_another_width_and_vocabulary_are_compared_by_roles(models, pattern, letters):
    hf_model = tiny_hf("llama", 0, vocab_size=len(letters), max_position_embeddings=256)
    spelt = wrap(hf_model, name="spelt", tokenizer=letters)
    found = representation_similarity(
        models["distilled-narrow"], spelt, pattern, prompts=24, permutations=2, roles=["x", "op"]
    )
    assert found["cka"].value.shape == (3, 4, 4)
    assert np.isnan(found["cka"].other_seed).all()
    assert found.other_seed == ""


def test_what_cannot_be_compared_is_refused(models, pattern):
    a, b = models["full"], models["distilled"]
    with pytest.raises(BatchError, match="0 permutations"):
        representation_similarity(a, b, pattern, permutations=0)
    with pytest.raises(BatchError, match="4 prompts are too few: give at least 8"):
        representation_similarity(a, b, pattern, prompts=4)
    with pytest.raises(SiteError, match="Role 'verb' is in 0 prompts"):
        representation_similarity(a, b, pattern, prompts=10, roles=["verb"])
    with pytest.raises(SiteError, match=r"Role 'name_acts' is in [1-7] prompts"):
        representation_similarity(a, b, pattern, prompts=20, roles=["name_acts"])
    with pytest.raises(ModelError, match="'tiny llama' came without a tokenizer"):
        representation_similarity(a, tiny("llama"), pattern)


def test_a_measure_that_does_not_exist_is_refused(found):
    with pytest.raises(SiteError, match="no measure 'svcca'"):
        found["svcca"]
