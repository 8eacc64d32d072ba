"""Which items are hard, how able each checkpoint is, and what fails whatever the ability.

A hierarchical item-response model of model m, item i and slice s:

    successes_mis ~ BetaBinomial(trials_mis, mean p, precision φ)   correlation of tries 1 / (φ + 1)
    p = chance + (1 - chance - lapse_m) · sigmoid(θ_m - β x_i - family_i - e_i - δ_s)
    family ~ N(0, sd_family²)   e ~ N(0, sd_item²)   logit lapse_m = λ0 + λ1 progress_m

A lapse is a failure that ability does not mend. Without it, nines would be an artefact of the
logistic's tail. δ of the first slice is 0; the others are free to help or to hurt.

A share π of the items can be solved by no ability: their p is chance. An item that never succeeded
is either such or hard, and which of the two is summed over. π caps what a forecast may reach.

Fitted by marginal Laplace approximation (as in INLA, Rue et al. 2009): every item effect is
integrated by adaptive quadrature, Newton's method finds the mode of the other effects, and a trust
region the mode of the hyperparameters (sd_item, sd_family, φ). NumPy in float64 with derivatives
written out: nothing to compile, and the same figures on every machine.
"""

from dataclasses import dataclass
from itertools import combinations

import numpy as np
from numpy import ndarray
from scipy.sparse import csr_array, diags_array
from scipy.special import digamma, expit, gammaln, log_expit, logsumexp

from ramp.errors import UserError
from ramp.nines.trials import Trials, checkpoint_progress, group_rows, name_families

# Priors of log sd_item, log sd_family and log φ, and where they are searched.
HYPER_MEAN = np.array([0.0, -0.5, 2.0])
HYPER_SD = np.array([1.0, 1.0, 1.5])
HYPER_BOUNDS = np.array([(-4, -4, -2), (2.5, 2.5, 7)])
SD_ITEM, SD_FAMILY, PHI = range(3)
# Mean and standard deviation of λ0, at the last checkpoint, and of λ1, per decade.
LAPSE, TREND = (-4.5, 1.5), (-0.5, 0.5)
# The same of logit π: most likely none to speak of, and 4% is no surprise.
NEVER = (-6.0, 1.5)
ABILITY_SD = 5.0
# Standard deviations are multiplied by this where the hyperparameters did not settle.
UNSETTLED = 2.0
# Success rate at an item that no ability solves, where nothing can be guessed: a broken grader.
IMPOSSIBLE = 1e-3
LEAST_CURVATURE = 0.5  # that a posterior is taken to have, in units of its prior
MAX_EVALUATIONS = 120  # of the evidence of the hyperparameters
BLOCKS = 8  # settings of the hyperparameters that effects are drawn at
# With 5 nodes the evidence jumps by half a nat, and the search of the scales does not settle.
QUADRATURE = np.polynomial.hermite_e.hermegauss(13)
PROPOSALS = 3  # for each draw of the effects


@dataclass(frozen=True)
class Cells:
    """Trials summed to C cells of (model, item, slice). A model is one checkpoint of one run."""

    model: ndarray  # [C]
    item: ndarray  # [C]
    slice: ndarray  # [C]
    successes: ndarray  # [C]
    count: ndarray  # [C] trials
    chance: ndarray  # [C]
    runs: ndarray  # [M] run of each model
    x: ndarray  # [M] log10 of compute or steps
    items: list[str]
    slices: list[str]
    family: ndarray  # [I]
    difficulty: ndarray  # [I] minus the mean
    families: list[str]
    mean_difficulty: float = 0.0


@dataclass(frozen=True)
class ItemFit:
    """Posterior draws of P effects, in the order of `names`."""

    cells: Cells
    names: list[str]
    effects: ndarray  # [S, P]
    hyper: ndarray  # [S, 3] sd_item, sd_family, φ
    item_effects: ndarray  # [I] at the mode
    mean: ndarray  # [P] at the mode of the hyperparameters
    cov: ndarray  # [P, P] there
    converged: bool = True  # if not, every interval is UNSETTLED times as wide

    def difficulty(self) -> ndarray:
        """[I] how hard each item is, in logits: covariate, family and its own effect."""
        c = self.cells
        models = len(self.cells.runs)
        family = self.mean[models + 1 : models + 1 + len(c.families)]
        return self.mean[models] * c.difficulty + family[c.family] + self.item_effects

    def columns(self, kind: str) -> ndarray:
        """Places of the effects whose name starts with `kind`."""
        return np.flatnonzero(np.char.startswith(self.names, kind))


@dataclass(frozen=True)
class Design:
    """The cells as a regression: the logits are x @ effects - item effects, of lapses too."""

    cells: Cells
    x: csr_array  # [C, P]
    lapse: csr_array  # [C, P]
    item_sum: csr_array  # [I, C] adds up the cells of each item
    center: ndarray  # [P] prior mean of the effects
    precision: ndarray  # [P] prior precision; that of families is a hyperparameter
    is_family: ndarray  # [P] bool
    never: int = -3  # the place of logit π among the effects

    def prior_precision(self, h: ndarray) -> ndarray:
        """[P] precision of the effects, that of families by the hyperparameters."""
        return np.where(self.is_family, np.exp(-2 * h[SD_FAMILY]), self.precision)


def place_rows(t: Trials) -> ndarray:
    """[N] log10 of the progress of each row."""
    x = checkpoint_progress(t)
    # Step 0 has no logarithm: it is placed a decade before the first step.
    return np.maximum(x, min(x[np.isfinite(x)], default=0.0) - 1)


def find_models(t: Trials) -> tuple[ndarray, ndarray]:
    """[M] the first row of each checkpoint of each run, and [N] the checkpoint of each row."""
    return group_rows(t.run, place_rows(t))


def sum_cells(t: Trials) -> Cells:
    """Sum trials to cells. Raises UserError where items cannot be told from ability."""
    if (t.item == "").any():
        raise UserError("the item model needs the item of every trial; aggregates have none")
    x = place_rows(t)
    first, item = group_rows(t.task, t.item)
    if len(first) < 2:
        raise UserError("one item cannot tell how items differ; give two or more distinct items")
    named = name_families(item, t.family, t.task, t.item)
    families, family = np.unique(np.where(named == "", t.task[first], named), return_inverse=True)
    # The empty name sorts first: base is the slice that others are compared with.
    slices, in_slice = np.unique(np.where(t.slice == "base", "", t.slice), return_inverse=True)
    last, model = find_models(t)
    cell, of_cell = group_rows(model, item, in_slice)
    return Cells(
        model=model[cell],
        item=item[cell],
        slice=in_slice[cell],
        successes=np.bincount(of_cell, t.success),
        count=np.bincount(of_cell).astype(float),
        chance=t.chance[cell],
        runs=t.run[last],
        x=x[last],
        items=[f"{t.task[i]}/{t.item[i]}" for i in first],
        slices=[str(name) or "base" for name in slices],
        family=family,
        difficulty=t.difficulty[first] - t.difficulty[first].mean(),
        families=families.tolist(),
        mean_difficulty=float(t.difficulty[first].mean()),
    )


# The likelihood of a cell and its derivatives


def _probability(eta, lapse, c):
    p = c.chance + (1 - c.chance - expit(lapse)) * expit(eta)
    return np.clip(p, 1e-8, 1 - 1e-8)


def _log_likelihood(p, log_phi, c):
    """[..., C] beta-binomial log likelihood, without the binomial coefficient."""
    phi = np.exp(log_phi)
    a = p * phi
    b = (1 - p) * phi
    # Four times gammaln takes two thirds of the time of SciPy's betaln.
    passed = gammaln(a + c.successes) - gammaln(a)
    failed = gammaln(b + c.count - c.successes) - gammaln(b)
    return passed + failed + gammaln(phi) - gammaln(phi + c.count)


def _trigamma(z):
    """The second derivative of log Γ, at ten times SciPy's speed.

    By recurrence to z + 6 and the asymptotic series there.
    """
    shift = 1 / (z + 6)
    w = shift * shift
    series = shift * (1 + shift / 2 + w * (1 / 6 - w * (1 / 30 - w * (1 / 42 - w / 30))))
    return series + sum(1 / (z + k) ** 2 for k in range(6))


def _derivatives(eta, lapse, log_phi, c):
    """Of the negative log likelihood, [..., C] each.

    By eta, by lapse, by eta twice, by eta and lapse, by lapse twice.
    """
    s = expit(eta)
    lam = expit(lapse)
    phi = np.exp(log_phi)
    p = _probability(eta, lapse, c)
    a = p * phi
    b = (1 - p) * phi
    passed = a + c.successes
    failed = b + c.count - c.successes
    by_p = phi * (digamma(passed) - digamma(a) - digamma(failed) + digamma(b))
    by_pp = phi**2 * (_trigamma(passed) - _trigamma(a) + _trigamma(failed) - _trigamma(b))
    # The chain rule through p.
    p_eta = (1 - c.chance - lam) * s * (1 - s)
    p_lapse = -lam * (1 - lam) * s
    return (
        -by_p * p_eta,
        -by_p * p_lapse,
        -by_pp * p_eta**2 - by_p * p_eta * (1 - 2 * s),
        -by_pp * p_eta * p_lapse - by_p * p_lapse * (1 - s),
        -by_pp * p_lapse**2 - by_p * p_lapse * (1 - 2 * lam),
    )


# The posterior. g: [P] effects, e: [I] item effects, h: [3] log hyperparameters; d: the Design,
# c: its Cells.


def _item_modes(g, e, h, d):
    """[I] the likeliest effect of each item given g, and the width of its posterior there."""
    eta = d.x @ g
    lapse = d.lapse @ g
    precision = np.exp(-2 * h[SD_ITEM])
    for _ in range(30):
        by_eta, _, by_eta_eta, *_ = _derivatives(eta - e[d.cells.item], lapse, h[PHI], d.cells)
        curvature = np.maximum(d.item_sum @ by_eta_eta + precision, 0.2 * precision)
        step = np.clip((e * precision - d.item_sum @ by_eta) / curvature, -1, 1)
        e = e - step
        # The quadrature makes up for the rest, but the evidence must be smooth.
        if np.abs(step).max() < 1e-4:
            break
    return e, 1 / np.sqrt(curvature)


def _integrate_items(g, e, h, d):
    """Negative log posterior of g with the items integrated out, by K nodes an item.

    Returns it; logits, [K, C], and logits of the lapse, [C]; the posterior of the nodes, [K, I],
    with a last row for items that no ability solves; and the modes of the items.
    """
    e, width = _item_modes(g, e, h, d)
    nodes, mass = QUADRATURE
    nodes = nodes[:, None]
    effects = e + width * nodes  # [K, I]
    eta = d.x @ g - effects[:, d.cells.item]
    lapse = d.lapse @ g
    at_success = _probability(eta, lapse, d.cells)
    likelihood = (d.item_sum @ _log_likelihood(at_success, h[PHI], d.cells).T).T
    prior = -0.5 * effects**2 * np.exp(-2 * h[SD_ITEM]) - h[SD_ITEM]
    # The nodes integrate against a normal density, which is divided out again.
    at_nodes = likelihood + prior + 0.5 * nodes**2 + np.log(mass)[:, None]
    # An item is solved by ability, or by none.
    at_chance = np.maximum(d.cells.chance, IMPOSSIBLE)
    hopeless = d.item_sum @ _log_likelihood(at_chance, h[PHI], d.cells)
    # By logits, since a search may try a share that rounds to 1.
    solvable = at_nodes + log_expit(-g[d.never]) + np.log(width)
    at_nodes = np.vstack([solvable, log_expit(g[d.never]) + hopeless])
    total = logsumexp(at_nodes, axis=0)
    off = g - d.center
    value = 0.5 * d.prior_precision(h) @ off**2 - total.sum()
    return value, eta, lapse, np.exp(at_nodes - total), e


def _marginal(g, e, h, d):
    """The value of `_integrate_items`, its gradient [P] and Hessian [P, P], and the items' modes.

    The Hessian is by Louis' identity (1982): mean curvature less the variance of the slopes.
    """
    value, eta, lapse, posterior, e = _integrate_items(g, e, h, d)
    share = expit(g[d.never])
    by_eta, by_lapse, *curvatures = _derivatives(eta, lapse, h[PHI], d.cells)
    weights = posterior[:-1, d.cells.item]
    eta_eta, eta_lapse, lapse_lapse = ((weights * part).sum(0) for part in curvatures)
    # The last row is of an item that ability does not solve: only its share π has a slope.
    slopes = np.zeros((*posterior.shape, len(g)))
    for k, (u, v) in enumerate(zip(by_eta, by_lapse, strict=True)):
        cells = diags_array(u) @ d.x + diags_array(v) @ d.lapse
        slopes[k] = (d.item_sum @ cells).toarray()
    slopes[..., d.never] = share
    slopes[-1, :, d.never] -= 1
    mean = (posterior[..., None] * slopes).sum(0)
    spread = ((slopes - mean) * np.sqrt(posterior)[..., None]).reshape(-1, len(g))
    cross = d.x.T @ diags_array(eta_lapse) @ d.lapse
    curvature = d.x.T @ diags_array(eta_eta) @ d.x + cross + cross.T
    curvature += d.lapse.T @ diags_array(lapse_lapse) @ d.lapse
    precision = d.prior_precision(h)
    # Sparse products and einsum: a threaded BLAS on a busy machine takes a hundred times as long.
    variance = np.einsum("ki,kj->ij", spread, spread)
    hessian = curvature.toarray() + np.diag(precision) - variance
    hessian[d.never, d.never] += len(e) * share * (1 - share)
    return value, mean.sum(0) + precision * (g - d.center), hessian, e


def _laplace(g, e, h, d):
    """The Laplace approximation at h, searched from g and e.

    Returns the mode over g, the items' modes there, the negative log evidence of h, and a root of
    the covariance of g. Newton's method, with shorter steps where one fails.
    """
    # In units of the prior, where no curvature is below 1 unless hard items may be hopeless ones.
    scale = 1 / np.sqrt(d.prior_precision(h))
    value, slope, hessian, e = _marginal(g, e, h, d)
    fraction = 1.0
    for _ in range(60):
        values, vectors = np.linalg.eigh(hessian * np.outer(scale, scale))
        values = np.maximum(np.abs(values), LEAST_CURVATURE)
        root = scale[:, None] * vectors / np.sqrt(values)
        step = root @ (root.T @ slope)
        if slope @ step < 1e-3:
            break
        trial = g - fraction * step
        new_value, *rest = _marginal(trial, e, h, d)
        if new_value <= value:  # False for NaN as well
            g = trial
            value = new_value
            slope, hessian, e = rest
            fraction = min(1.0, 3 * fraction)
        else:
            fraction /= 4
            if fraction < 1e-6:
                break
    log_prior = -0.5 * (((h - HYPER_MEAN) / HYPER_SD) ** 2).sum()
    # The last step is taken too, and what it gains.
    evidence = value + 0.5 * np.log(values).sum() - log_prior - 0.5 * slope @ step
    return g - step, e, evidence, root


# The fit


def _build_design(c):
    """The regression of the cells, and the names of its effects."""
    names = [f"ability {run} {x:g}" for run, x in zip(c.runs, c.x, strict=True)]
    names += ["difficulty", *(f"family {name}" for name in c.families)]
    names += [f"slice {name}" for name in c.slices[1:]]
    names += ["never", "lapse level", "lapse trend"]
    cells = len(c.model)
    models = len(c.runs)
    effects = len(names)
    row = np.arange(cells)
    x, lapse = np.zeros((2, cells, effects))
    x[row, c.model] = 1
    x[:, models] = -c.difficulty[c.item]
    x[row, models + 1 + c.family[c.item]] = -1
    # The first slice has no effect: it is what the others are compared with.
    changed = c.slice > 0
    x[row[changed], models + len(c.families) + c.slice[changed]] = -1
    lapse[:, -2] = 1
    lapse[:, -1] = (c.x - c.x.max())[c.model]
    sd = np.ones(effects)
    center = np.zeros(effects)
    sd[:models] = ABILITY_SD
    center[-3:], sd[-3:] = np.transpose([NEVER, LAPSE, TREND])
    item_sum = csr_array((np.ones(cells), (c.item, row)), shape=(len(c.items), cells))
    is_family = np.char.startswith(names, "family ")
    return Design(c, csr_array(x), csr_array(lapse), item_sum, center, 1 / sd**2, is_family), names


def fit(c: Cells, draws: int = 400) -> ItemFit:
    """Posterior draws of every effect; takes some seconds for 10,000 cells."""
    d, names = _build_design(c)
    mode = [d.center, np.zeros(len(c.items))]

    def evidence(h):
        g, e, value, _ = _laplace(*mode, h, d)
        if not np.isfinite(value):
            return np.inf
        mode[:] = g, e  # the next search starts here
        return value

    share = c.successes / c.count
    if share.min() == share.max() and share[0] in (0, 1):
        # Where nothing differs nothing is told about scales: they stay as they were expected.
        peak, root, converged = HYPER_MEAN, np.diag(HYPER_SD), True
    else:
        peak, root, converged = _find_scales(evidence, len(c.families))
    widen = 1 if converged else UNSETTLED

    def draw(h, size):
        # Lapses and the share of hopeless items have long lower tails and short upper ones. So the
        # normal approximation only proposes, and the posterior chooses among its proposals.
        g, e, _, root = _laplace(*mode, h, d)
        z = rng.standard_normal((size * PROPOSALS, len(g)))
        proposals = g + z @ root.T
        value = np.array([_integrate_items(at, e, h, d)[0] for at in proposals])
        log_ratio = 0.5 * (z**2).sum(1) - value
        ratio = np.exp(log_ratio - log_ratio.max())
        # No proposal stands for more than a tenth of the draws.
        ratio = np.minimum(ratio, 0.1 * ratio.sum())
        chosen = rng.choice(len(z), size, p=ratio / ratio.sum())
        return g + widen * (proposals[chosen] - g)

    mean, item_effects, _, laplace_root = _laplace(*mode, np.clip(peak, *HYPER_BOUNDS), d)
    cov = laplace_root @ laplace_root.T * widen**2
    rng = np.random.default_rng(0)
    # Hyperparameters in opposite pairs, so that their mean is the mode.
    half = rng.standard_normal((BLOCKS // 2, 3)) * widen
    z = np.concatenate([half, -half])
    hyper = np.clip([peak + root @ row for row in z], *HYPER_BOUNDS)
    # Draws of one block have the same hyperparameters.
    block = np.sort(np.arange(draws) % BLOCKS)
    sizes = np.bincount(block, minlength=BLOCKS)
    effects = np.concatenate([draw(h, size) for h, size in zip(hyper, sizes, strict=True)])
    hyper = np.exp(hyper)[block]
    return ItemFit(c, names, effects, hyper, item_effects, mean, cov, converged)


def _find_scales(evidence, families):
    """`_minimize_hyper` over the scales that can be told."""
    # The spread of one family cannot: it stays as it was expected.
    free = [SD_ITEM, SD_FAMILY, PHI] if families > 1 else [SD_ITEM, PHI]

    def place(scales):
        h = HYPER_MEAN.copy()
        h[free] = scales
        return h

    peak, own_root, converged = _minimize_hyper(
        lambda scales: evidence(place(scales)), HYPER_MEAN[free], HYPER_BOUNDS[:, free]
    )
    root = np.zeros((len(HYPER_MEAN), len(HYPER_MEAN)))
    root[np.ix_(free, free)] = own_root
    return place(peak), root, converged


def _minimize_hyper(loss, x, bounds):
    """Newton's method in a trust region, on differences over a tenth, since the loss is not smooth.

    Returns the minimum, a root of the inverse Hessian there, and whether it settled: the next step
    would gain less than a twentieth of a nat. Stops after `MAX_EVALUATIONS` or one round more.
    """
    moves = 0.1 * np.eye(len(x))
    best = loss(x)
    radius = 1.0
    used = 1
    while True:
        up = np.array([loss(x + move) for move in moves])
        down = np.array([loss(x - move) for move in moves])
        slope = (up - down) / 0.2
        curvature = np.diag(up + down - 2 * best)
        for i, j in combinations(range(len(x)), 2):
            both = loss(x + moves[i] + moves[j])
            curvature[i, j] = curvature[j, i] = both - up[i] - up[j] + best
        if not np.isfinite(curvature).all():
            return x, np.eye(len(x)), False
        values, vectors = np.linalg.eigh(curvature / 0.01)
        # Flat or torn directions get no wider than the priors.
        root = vectors / np.sqrt(np.maximum(values, 1.0))
        used += len(x) * (len(x) + 3) // 2
        newton = -root @ (root.T @ slope)
        newton /= max(1.0, np.linalg.norm(newton))
        length = max(np.linalg.norm(newton), 1e-12)
        gain = -slope @ (np.clip(x + newton, *bounds) - x)
        settled = bool(gain < 0.1)
        improved = False
        while not improved:
            if settled or used >= MAX_EVALUATIONS or radius < 1e-2:
                return x, root, settled
            trial = np.clip(x + newton * min(1.0, radius / length), *bounds)
            value = loss(trial)
            used = used + 1
            improved = value < best
            if improved:
                x = trial
                best = value
                radius = min(2 * radius, 1.0)
            else:
                radius = np.linalg.norm(trial - x) / 3
