"""Similarity of representations equals the textbook formulas, and is 0 for unrelated rows."""

import numpy as np
import pytest
from scipy.spatial.distance import pdist
from scipy.stats import spearmanr

import probes
from probes.comparison.representations.compare import SimilaritySettings, representation_similarity
from probes.comparison.representations.kernels import (
    RoleKernels,
    center_pairs,
    center_within_classes,
    gram_matrices,
    inner_products,
    permute_within_classes,
    rank_matrices,
    ranked_distances,
)
from probes.comparison.representations.measures import procrustes
from probes.comparison.representations.moments import grid_moments
from probes.comparison.representations.result import ALL
from probes.errors import BatchError, ModelError, SiteError
from probes.models.model import wrap
from probes.observe.role_states import capture_role_states
from probes.testing.tiny_models import tiny, tiny_hf

PROMPTS = 60


def normal(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape)


def ratio(a, b):
    given_order = [np.arange(a.shape[1])]
    return inner_products(a, b, given_order)[0] / np.sqrt(
        np.outer(np.square(a).sum((1, 2)), np.square(b).sum((1, 2)))
    )


def kernel(x, classes):
    return center_within_classes(gram_matrices(x[None], classes), classes)


def hsic(x, y):
    """Unbiased HSIC by its definition (Song et al. 2012)."""
    n = len(x)
    k, other = (z @ z.T * (1 - np.eye(n)) for z in (x, y))
    whole = (k * other).sum() + k.sum() * other.sum() / ((n - 1) * (n - 2))
    return (whole - 2 / (n - 2) * (k @ other).sum()) / (n * (n - 3))


def cka(x, y):
    """Debiased CKA by its definition."""
    return hsic(x, y) / np.sqrt(hsic(x, x) * hsic(y, y))


def hsic_within(x, y, classes):
    """Products of the covariances of different classes, and unbiased HSIC within each class."""
    sizes = {c: int((classes == c).sum()) for c in np.unique(classes)}
    kept = [c for c, size in sizes.items() if size > 1]
    weight = {c: sizes[c] / sum(sizes[k] for k in kept) for c in kept}
    total = 0.0
    for c in kept:
        for d in kept:
            in_c, in_d = classes == c, classes == d
            if c == d and sizes[c] > 3:
                total += weight[c] ** 2 * hsic(x[in_c], y[in_c])
            elif c != d:
                cov_c, cov_d = (
                    (x[s] - x[s].mean(0)).T @ (y[s] - y[s].mean(0)) / (s.sum() - 1)
                    for s in (in_c, in_d)
                )
                total += weight[c] * weight[d] * (cov_c * cov_d).sum()
    return total


def test_kernels_of_one_class_give_debiased_cka():
    x, y, one = normal(40, 6), normal(40, 9, seed=1), np.zeros(40, dtype=np.int64)
    y[:, :6] += x
    found = ratio(kernel(x, one), kernel(y, one))[0, 0]
    assert found == pytest.approx(cka(x, y), abs=1e-12)


def test_kernels_within_classes_equal_the_sum_over_pairs_of_classes():
    classes = np.array([0] * 9 + [1] * 4 + [2] * 3 + [3] * 2 + [4])
    classes = np.random.default_rng(0).permutation(classes)
    x = normal(19, 5) + 3 * normal(5, 5, seed=2)[classes]
    y = x[:, :3] + normal(19, 3, seed=1)
    wanted = hsic_within(x, y, classes)
    assert (kernel(x, classes) * kernel(y, classes)).sum() == pytest.approx(wanted, abs=1e-9)


def test_what_depends_on_the_token_alone_is_not_similar_given_the_token():
    found, plain = [], []
    for seed in range(20):
        rng = np.random.default_rng(seed)
        classes = rng.integers(0, 20, 200)
        x, y = (rng.normal(size=(20, 64))[classes] * 2 + rng.normal(size=(200, 64)) for _ in "xy")
        found.append(ratio(kernel(x, classes), kernel(y, classes))[0, 0])
        plain.append(cka(x, y))
    assert np.mean(plain) > 0.5
    assert abs(np.mean(found)) < 3 * np.std(found) / np.sqrt(20)
    assert np.std(found) < 0.03


def test_what_is_shared_beyond_the_token_is_similar_given_the_token():
    classes = np.random.default_rng(0).integers(0, 20, 200)
    shared = normal(200, 64)
    x, y = (shared + 2 * normal(20, 64, seed=n)[classes] for n in (1, 2))
    assert ratio(kernel(x, classes), kernel(y, classes))[0, 0] == pytest.approx(1)


def test_states_that_differ_only_by_rounding_count_as_constant():
    classes = np.arange(40) % 4
    token = normal(4, 8)[classes] * 100
    noisy = (token + 1e-5 * normal(40, 8, seed=1))[None]
    assert not gram_matrices(noisy, classes).any()
    assert gram_matrices(noisy, np.zeros(40, dtype=np.int64)).any()


def test_ranked_distances_give_spearmans_correlation():
    x, y = normal(30, 4), normal(30, 4, seed=1)
    y += x
    a, b = (center_pairs(rank_matrices(z[None])) for z in (x, y))
    assert ratio(a, b)[0, 0] == pytest.approx(spearmanr(pdist(x), pdist(y)).statistic, abs=1e-4)


def test_ties_among_distances_count_as_in_scipy():
    x = np.repeat(normal(12, 3), 5, axis=0)
    y = normal(60, 3, seed=1) + x
    noisy = x + 1e-9 * normal(60, 3, seed=2)
    wanted = spearmanr(pdist(x), pdist(y)).statistic
    exact, with_noise = ((ranked_distances(z) * ranked_distances(y)).sum() for z in (x, noisy))
    assert exact == pytest.approx(wanted, abs=1e-3)
    assert with_noise == pytest.approx(exact, abs=1e-12)


def test_ranked_distances_ignore_rotation_and_scale():
    x = normal(300, 8)
    rotation = np.linalg.qr(normal(8, 8, seed=1))[0]
    a, b = ranked_distances(x), ranked_distances(3 * x @ rotation + 1)
    assert (a * b).sum() == pytest.approx(1, abs=1e-4)


def test_constant_rows_have_no_ranked_distances():
    constant = np.ones((50, 4), dtype=np.float32) + 1e-7 * normal(50, 4).astype(np.float32)
    assert np.isnan(ranked_distances(constant)).all()


def test_ranked_distances_refuse_rows_that_are_not_finite():
    rows = normal(40, 2)
    rows[3, 1] = np.nan
    with pytest.raises(BatchError, match="The site is not finite: nan found in row 3"):
        ranked_distances(rows)


def test_prompts_are_permuted_only_within_their_class():
    classes = np.random.default_rng(0).integers(0, 5, 50)
    order = permute_within_classes(classes, np.random.default_rng(1).random(50))
    assert sorted(order) == list(range(50))
    assert (classes[order] == classes).all()
    assert (order != np.arange(50)).mean() > 0.6


def test_jackknife_intervals_have_about_their_nominal_coverage():
    covered = []
    present, classes = np.ones((1, 80), dtype=bool), [np.zeros(80, dtype=np.int64)]
    truth = 4 / 9  # covariance 2/3 of both variances, in every dimension alike
    for seed in range(60):
        shared = normal(80, 6, seed=seed)
        x, y = (np.sqrt(2) * shared + normal(80, 6, seed=seed + s) for s in (1000, 2000))
        sites = [z[None, None] for z in (x, y)]
        pairs = RoleKernels.of("cka", (sites[0], sites[1]), classes, present)
        low, high = pairs.jackknife(pairs.similarities(np.empty((0, 80)))[:, 0])
        covered.append(low[0, 0, 0] < truth < high[0, 0, 0])
    assert 0.85 <= np.mean(covered) <= 1


@pytest.fixture(scope="module")
def models():
    return {name: probes.load(name) for name in ("full", "full-b", "distilled", "distilled-narrow")}


@pytest.fixture(scope="module")
def pattern():
    return probes.pattern("take-away")


@pytest.fixture(scope="module")
def similarity(models, pattern):
    a, b, another = (models[name] for name in ("full", "distilled", "full-b"))
    return representation_similarity(
        a,
        b,
        pattern,
        other_seed=another,
        settings=SimilaritySettings(prompts=PROMPTS, permutations=5),
    )


def test_each_value_equals_the_formula_on_the_states_at_the_role(models, pattern, similarity):
    questions = pattern.sample_questions(PROMPTS, seed=0)
    a, b = (capture_role_states(models[name], questions) for name in ("full", "distilled"))
    x, y = (s.states[s.roles.index("op"), layer] for s, layer in ((a, 3), (b, 1)))
    at = similarity["cka"].roles.index("op")
    assert similarity["cka"].value[at, 3, 1] == pytest.approx(cka(x, y), abs=1e-6)
    wanted = spearmanr(pdist(x), pdist(y)).statistic
    assert similarity["rsa"].value[at, 3, 1] == pytest.approx(wanted, abs=1e-3)


def test_procrustes_pools_all_roles_minus_their_means(models, pattern, similarity):
    questions = pattern.sample_questions(PROMPTS, seed=0)
    rows = []
    for name, layer in (("full", 4), ("distilled", 2)):
        seen, sites = capture_role_states(models[name], questions), []
        for role in similarity.counts:
            own = seen.present[seen.roles.index(role)]
            states = seen.states[seen.roles.index(role), layer]
            first = own & (np.arange(PROMPTS) < PROMPTS // 2)
            sites.append(states[own] - states[first].mean(0))
        rows.append(np.concatenate(sites))
    wanted = procrustes(grid_moments(*([side] for side in rows))[0, 0])
    assert similarity["procrustes"].value[0, 4, 2] == pytest.approx(wanted, abs=1e-6)


def test_states_are_read_at_the_last_token_of_the_role(models, pattern):
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


def test_every_measure_has_all_pairs_of_layers_a_null_and_the_other_seed(similarity):
    assert list(similarity.measures) == [
        *("cka", "cka given token", "rsa", "procrustes"),
        *("predictivity a → b", "predictivity b → a"),
    ]
    at = similarity["cka"].roles.index("op")
    for measure in similarity.measures.values():
        assert measure.value.shape == (len(measure.roles), 5, 3)
        assert measure.other_seed.shape == (len(measure.roles), 5)
        assert measure.roles[-1] == ALL
        top = measure.value[-1, 4, 2]
        assert top > measure.chance_high[-1, 4, 2] + 0.2
        assert np.isfinite(measure.other_seed[-1, 4])
    cka_measure = similarity["cka"]
    assert abs(cka_measure.chance[at, 4, 2]) < 0.1
    assert cka_measure.low[at, 4, 2] < cka_measure.value[at, 4, 2] < cka_measure.high[at, 4, 2]
    assert np.isnan(similarity["procrustes"].low).all()


def test_roles_come_in_the_order_of_the_text_without_bos_rest_and_the_last_answer(similarity):
    roles = similarity["cka"].roles
    assert not {"bos", "rest", "reply_noun"} & set(roles)
    assert roles.index("answer") < roles.index("reply_number") < roles.index(ALL)
    assert similarity.counts["op"] == PROMPTS
    assert all(similarity.token_counts[role] <= count for role, count in similarity.counts.items())


def test_a_constant_token_has_no_similarity_before_the_first_block(similarity):
    at = similarity["cka"].roles.index("answer")
    for measure in ("cka", "rsa"):
        assert np.isnan(similarity[measure].value[at, 0]).all()
        assert np.isfinite(similarity[measure].value[at, 1:, 1:]).all()
    assert np.isnan(similarity["cka given token"].value[:, 0]).all()


def test_a_model_compared_with_itself_scores_1_and_equals_its_other_seed(models, pattern):
    a = models["distilled"]
    similarity = representation_similarity(
        a,
        a,
        pattern,
        other_seed=a,
        settings=SimilaritySettings(prompts=40, permutations=1, roles=["op", "y"]),
    )
    assert list(similarity.counts) == ["op", "y"]
    for name in ("cka", "cka given token", "rsa", "procrustes"):
        measure = similarity[name]
        own = np.diagonal(measure.value, axis1=1, axis2=2)
        assert np.nanmin(own) == pytest.approx(1, abs=1e-6)
        np.testing.assert_allclose(own, measure.other_seed)
    assert similarity["predictivity a → b"].value[0, -1, -1] > 0.7


def test_the_table_has_a_row_for_every_value(similarity):
    table = similarity.table()
    assert len(table) == sum(measure.value.size for measure in similarity.measures.values())
    row = table.query("measure == 'rsa' and role == 'y' and layer_a == 2 and layer_b == 1").iloc[0]
    at = similarity["rsa"].roles.index("y")
    assert row["value"] == similarity["rsa"].value[at, 2, 1]
    assert row["chance_high"] == similarity["rsa"].chance_high[at, 2, 1]
    assert row["other_seed"] == similarity["rsa"].other_seed[at, 2]


def test_models_of_different_width_and_vocabulary_are_compared_by_roles(models, pattern, letters):
    hf_model = tiny_hf("llama", 0, vocab_size=len(letters), max_position_embeddings=256)
    by_letters = wrap(hf_model, name="by letters", tokenizer=letters)
    similarity = representation_similarity(
        models["distilled-narrow"],
        by_letters,
        pattern,
        settings=SimilaritySettings(prompts=24, permutations=2, roles=["x", "op"]),
    )
    assert similarity["cka"].value.shape == (3, 4, 4)
    assert np.isnan(similarity["cka"].other_seed).all()
    assert similarity.other_seed == ""


@pytest.mark.parametrize(
    ("settings", "error", "message"),
    [
        ({"permutations": 0}, BatchError, "0 permutations"),
        ({"prompts": 4}, BatchError, "4 prompts are too few: give at least 8"),
        ({"prompts": 10, "roles": ["verb"]}, SiteError, "Role 'verb' is in 0 prompts"),
        ({"prompts": 20, "roles": ["name_acts"]}, SiteError, r"Role 'name_acts' is in [1-7] pro"),
    ],
)
def test_invalid_settings_are_refused(models, pattern, settings, error, message):
    a, b = models["full"], models["distilled"]
    with pytest.raises(error, match=message):
        representation_similarity(a, b, pattern, settings=SimilaritySettings(**settings))


def test_a_model_without_a_tokenizer_is_refused(models, pattern):
    with pytest.raises(ModelError, match="'tiny llama' has no tokenizer"):
        representation_similarity(models["full"], tiny("llama"), pattern)


def test_an_unknown_measure_is_refused(similarity):
    with pytest.raises(SiteError, match="no measure 'svcca'"):
        similarity["svcca"]
