"""Which items are hard, how able each checkpoint is, and what fails whatever the ability: a hierarchical item model.

    successes_mis ~ BetaBinomial(trials_mis, mean p, precision φ)             φ: correlation of repeats, 1 / (φ + 1)
    p = chance + (1 - chance - lapse_m) · sigmoid(θ_m - β x_i - family_i - e_i - δ_s)
    family ~ N(0, sd_family²)   e ~ N(0, sd_item²)   logit lapse_m = λ0 + λ1 progress_m

A lapse is a failure that ability does not mend. Without it "nines" would be an artefact of the logistic's tail. δ of the
first slice is 0; the others are free to help or to hurt. Fitted by marginal Laplace (as in INLA, Rue et al. 2009): every
item effect is integrated by adaptive quadrature, Newton finds the mode of the others, and a trust region that of the
evidence of (sd_item, sd_family, φ). NumPy in float64 with the derivatives written out: nothing to compile, and the same
figures whatever device the rest of the program runs on.
"""

from collections.abc import Callable
from dataclasses import dataclass
from itertools import combinations

import numpy as np
from scipy.sparse import csr_array, diags_array
from scipy.special import digamma, expit, gammaln, logsumexp

from ramp.errors import UserError
from ramp.nines.trials import Table, checkpoint, groups

# log sd_item, log sd_family, log φ: prior means and standard deviations
HYPER_MEAN, HYPER_SD = np.array([0.0, -0.5, 2.0]), np.array([1.0, 1.0, 1.5])
LAPSE, TREND = (
    (-4.5, 1.5),
    (-0.5, 0.5),
)  # λ0 at the last checkpoint, λ1 per decade: mean, standard deviation
UNSETTLED = 2.0  # standard deviations are multiplied by this where the scales did not settle


@dataclass(frozen=True)
class Cells:
    """Trials summed to cells of (model, item, slice); a model is one checkpoint of one run."""

    model: np.ndarray
    item: np.ndarray
    slice: np.ndarray
    wins: np.ndarray
    count: np.ndarray
    chance: np.ndarray
    progress: np.ndarray  # [M] log10 compute or step, minus that of the last model
    models: list[tuple[str, float]]  # [M] run and progress as it stands
    items: list[str]
    slices: list[str]
    family: np.ndarray  # [I]
    difficulty: np.ndarray  # [I] minus the mean
    families: list[str]


@dataclass(frozen=True)
class ItemFit:
    """Posterior draws. effects: [S, P] in the order of `names`; hyper: [S, 3] sd_item, sd_family, φ; items: [I] mean e."""

    cells: Cells
    names: list[str]
    effects: np.ndarray
    hyper: np.ndarray
    items: np.ndarray
    mean: np.ndarray  # [P] and
    cov: np.ndarray  # [P, P] at the mode of the hyperparameters
    converged: bool = True  # if not, every interval is UNSETTLED times as wide

    def difficulty(self) -> np.ndarray:
        """[I] how hard each item is, in logits: covariate, family and its own effect."""
        m, f = len(self.cells.models), len(self.cells.families)
        family = self.mean[m + 1 : m + 1 + f][self.cells.family]
        return self.mean[m] * self.cells.difficulty + family + self.items

    def columns(self, kind: str) -> np.ndarray:
        return np.array([i for i, name in enumerate(self.names) if name.startswith(kind)], int)


def cells(t: Table) -> Cells:
    """Raises UserError where there is nothing to tell items from ability with."""
    if (t["item"] == "").any():
        raise UserError("the item model needs the item of every trial; aggregates have none")
    x = checkpoint(t)
    x = np.maximum(
        x, min(x[np.isfinite(x)], default=0.0) - 1
    )  # step 0 has no logarithm: a decade before the first
    first, item = groups(t["task"], t["item"])
    if len(first) < 2:
        raise UserError("one item cannot tell how items differ; give two or more distinct items")
    families, family = np.unique(
        np.where(t["family"] == "", t["task"], t["family"]), return_inverse=True
    )
    slices, slice_ = np.unique(
        np.where(t["slice"] == "base", "", t["slice"]), return_inverse=True
    )  # base comes first
    last, model = groups(t["run"], x)
    cell, of = groups(model, item, slice_)
    return Cells(
        model=model[cell],
        item=item[cell],
        slice=slice_[cell],
        wins=np.bincount(of, t["success"]),
        count=np.bincount(of).astype(float),
        chance=t["chance"][cell],
        progress=x[last] - x.max(),
        models=[(str(t["run"][i]), float(x[i])) for i in last],
        items=[f"{t['task'][i]}/{t['item'][i]}" for i in first],
        slices=[str(s) or "base" for s in slices],
        family=family[first],
        difficulty=t["difficulty"][first] - t["difficulty"][first].mean(),
        families=families.tolist(),
    )


def _probability(s: np.ndarray, lapse: np.ndarray, d: dict) -> np.ndarray:
    return np.clip(d["chance"] + (1 - d["chance"] - lapse) * s, 1e-8, 1 - 1e-8)


def _log_likelihood(eta: np.ndarray, lapse: np.ndarray, log_phi: float, d: dict) -> np.ndarray:
    """[..., C] beta-binomial log-likelihood, without the binomial coefficient."""
    p, phi = _probability(expit(eta), expit(lapse), d), np.exp(log_phi)
    a, b, n = p * phi, (1 - p) * phi, d["count"]
    passed, failed = gammaln(a + d["wins"]) - gammaln(a), gammaln(b + n - d["wins"]) - gammaln(b)
    return passed + failed + gammaln(phi) - gammaln(phi + n)


def _trigamma(z: np.ndarray) -> np.ndarray:
    """The second derivative of log Γ by recurrence to z + 6 and the asymptotic series there: ten times SciPy's speed."""
    shift = 1 / (z + 6)
    w = shift * shift
    series = shift * (1 + shift / 2 + w * (1 / 6 - w * (1 / 30 - w * (1 / 42 - w / 30))))
    return series + sum(1 / (z + k) ** 2 for k in range(6))


def _slopes(eta: np.ndarray, lapse: np.ndarray, log_phi: float, d: dict) -> tuple[np.ndarray, ...]:
    """[..., C] each, of the negative log-likelihood: by eta, by lapse, by eta², by eta and lapse, by lapse²."""
    s, lam, phi = expit(eta), expit(lapse), np.exp(log_phi)
    p = _probability(s, lam, d)
    a, b = p * phi, (1 - p) * phi
    won, lost = a + d["wins"], b + d["count"] - d["wins"]
    by_p = phi * (digamma(won) - digamma(a) - digamma(lost) + digamma(b))
    p_eta, p_lapse = (1 - d["chance"] - lam) * s * (1 - s), -lam * (1 - lam) * s
    by_pp = phi**2 * (_trigamma(won) - _trigamma(a) + _trigamma(lost) - _trigamma(b))
    return (
        -by_p * p_eta,
        -by_p * p_lapse,
        -by_pp * p_eta**2 - by_p * p_eta * (1 - 2 * s),
        -by_pp * p_eta * p_lapse - by_p * p_lapse * (1 - s),
        -by_pp * p_lapse**2 - by_p * p_lapse * (1 - 2 * lam),
    )


def _modes(g: np.ndarray, e: np.ndarray, h: np.ndarray, d: dict) -> tuple[np.ndarray, np.ndarray]:
    """[I] where each item effect is likeliest at the effects g, and the width of its posterior there."""
    eta, lapse, tight = d["x"] @ g, d["lapse"] @ g, np.exp(-2 * h[0])
    for _ in range(30):
        u, _, uu, *_ = _slopes(eta - e[d["item"]], lapse, h[2], d)
        curve = np.maximum(d["sum"] @ uu + tight, 0.2 * tight)
        step = np.clip((e * tight - d["sum"] @ u) / curve, -1, 1)
        e = e - step
        if np.abs(step).max() < 0.02:  # the quadrature forgives the rest
            break
    return e, 1 / np.sqrt(curve)


def _marginal(
    g: np.ndarray, e: np.ndarray, h: np.ndarray, d: dict
) -> tuple[float, np.ndarray, np.ndarray, np.ndarray]:
    """Negative log posterior of the effects, each item integrated by quadrature around its mode; its gradient; its
    Hessian, by Louis' identity (1982): mean curvature less the variance of the slopes; and the items' modes."""
    e, sd = _modes(g, e, h, d)
    nodes, mass = np.polynomial.hermite_e.hermegauss(5)
    effect = e + sd * nodes[:, None]  # [5, I]
    x, lam = d["x"], d["lapse"]
    eta, lapse = x @ g - effect[:, d["item"]], lam @ g
    of_item = (d["sum"] @ _log_likelihood(eta, lapse, h[2], d).T).T
    at = (
        of_item
        - 0.5 * effect**2 * np.exp(-2 * h[0])
        - h[0]
        + 0.5 * nodes[:, None] ** 2
        + np.log(mass)[:, None]
    )
    total = logsumexp(at, axis=0)
    share = np.exp(at - total)  # [5, I] the posterior of the nodes
    u, v, *curves = _slopes(eta, lapse, h[2], d)
    uu, uv, vv = ((share[:, d["item"]] * c).sum(0) for c in curves)
    by = [diags_array(a) @ x + diags_array(b) @ lam for a, b in zip(u, v, strict=True)]
    slopes = np.stack([(d["sum"] @ part).toarray() for part in by])  # [5, I, P]
    mean = (share[..., None] * slopes).sum(0)
    spread = ((slopes - mean) * np.sqrt(share)[..., None]).reshape(-1, len(g))
    precision, off = np.where(d["is_family"], np.exp(-2 * h[1]), d["precision"]), g - d["center"]
    cross = x.T @ diags_array(uv) @ lam
    curve = x.T @ diags_array(uu) @ x + cross + cross.T + lam.T @ diags_array(vv) @ lam
    # Sparse products and einsum: a threaded BLAS on a busy machine takes a hundred times as long.
    hessian = curve.toarray() + np.diag(precision) - np.einsum("ki,kj->ij", spread, spread)
    value = 0.5 * (precision * off**2 - np.log(precision)).sum() - (total + np.log(sd)).sum()
    return float(value), mean.sum(0) + precision * off, hessian, e


def _laplace(
    g: np.ndarray, e: np.ndarray, h: np.ndarray, d: dict
) -> tuple[np.ndarray, np.ndarray, float, np.ndarray]:
    """The mode over effects g with the items integrated out, and the items' modes e there, started from those given; the
    negative log evidence of the hyperparameters; the precision of g. Newton, shorter where a step fails."""
    value, slope, hessian, e = _marginal(g, e, h, d)
    share = 1.0
    for _ in range(60):
        values, vectors = np.linalg.eigh(hessian)
        step = vectors @ (vectors.T @ slope / np.maximum(np.abs(values), 0.1))
        if slope @ step < 1e-3:
            break
        new = _marginal(g - share * step, e, h, d)
        if new[0] <= value:  # False for nan as well
            g, (value, slope, hessian, e), share = g - share * step, new, min(1.0, 3 * share)
        elif (share := share / 4) < 1e-6:
            break
    value += 0.5 * (
        np.log(np.maximum(values, 1e-3)).sum() + (((h - HYPER_MEAN) / HYPER_SD) ** 2).sum()
    )
    return g - step, e, value - 0.5 * slope @ step, hessian


def fit(c: Cells, draws: int = 400, seed: int = 0) -> ItemFit:
    """Posterior draws of every effect; some seconds for 10,000 cells."""
    m, f, s, i = len(c.models), len(c.families), len(c.slices), len(c.items)
    names = (
        [f"ability {r} {x:g}" for r, x in c.models]
        + ["difficulty"]
        + [f"family {n}" for n in c.families]
    )
    names += [f"slice {n}" for n in c.slices[1:]] + ["lapse level", "lapse trend"]
    p, n = len(names), len(c.model)
    x, lam = np.zeros((n, p)), np.zeros((n, p))
    x[np.arange(n), c.model] = 1
    x[:, m] = -c.difficulty[c.item]
    x[np.arange(n), m + 1 + c.family[c.item]] = -1
    for k in range(1, s):
        x[:, m + f + k] = np.where(c.slice == k, -1.0, 0.0)
    lam[:, -2], lam[:, -1] = 1, c.progress[c.model]
    sd = np.concatenate([np.full(m, 5.0), [1.0], np.ones(f), np.ones(s - 1), [LAPSE[1], TREND[1]]])
    center = np.concatenate([np.zeros(p - 2), [LAPSE[0], TREND[0]]])
    d = {
        "x": csr_array(x), "lapse": csr_array(lam), "item": c.item, "wins": c.wins, "count": c.count, "chance": c.chance,
        "sum": csr_array((np.ones(n), (c.item, np.arange(n))), shape=(i, n)),
        "precision": 1 / sd**2, "center": center, "is_family": np.array([a.startswith("family ") for a in names]),
    }  # fmt: skip
    mode = [center, np.zeros(i)]

    def loss(h: np.ndarray) -> float:
        g, e, value, _ = _laplace(*mode, h, d)
        if not np.isfinite(value):
            return np.inf
        mode[:] = g, e  # the next search starts here
        return value

    bounds = np.array([(-4, -4, -2), (2.5, 2.5, 7)])
    peak, root, converged = _peak(loss, HYPER_MEAN, bounds)
    rng, blocks, effects, hypers = np.random.default_rng(seed), 8, [], []
    z = rng.standard_normal((blocks // 2, 3)) * (1 if converged else UNSETTLED)
    z = np.concatenate([np.zeros((1, 3)), z, -z])  # in pairs, so that their mean is the mode
    for k in range(blocks + 1):  # the first at the mode
        h = np.clip(peak + root @ z[k], *bounds)
        g, e, _, precision = _laplace(*mode, h, d)
        cov = _covariance(precision) * (1 if converged else UNSETTLED**2)
        if not k:
            mean, first, at_mode = g, cov, e
            continue
        size = draws // blocks + (k <= draws % blocks)
        effects.append(rng.multivariate_normal(g, cov, size, method="eigh"))
        hypers.append(np.tile(np.exp(h), (size, 1)))
    return ItemFit(
        c, names, np.concatenate(effects), np.concatenate(hypers), at_mode, mean, first, converged
    )


def _covariance(precision: np.ndarray) -> np.ndarray:
    values, vectors = np.linalg.eigh((precision + precision.T) / 2)
    return (vectors / np.maximum(values, 1e-3)) @ vectors.T


def _peak(
    loss: Callable[[np.ndarray], float], x: np.ndarray, bounds: np.ndarray, most: int = 120
) -> tuple[np.ndarray, np.ndarray, bool]:
    """Newton in a trust region, on differences over a tenth: (where `loss` is least, a root of its inverse Hessian there,
    whether it settled within `most` evaluations: the next step would gain less than a hundredth of a nat)."""
    moves, here, radius, used = 0.1 * np.eye(len(x)), loss(x), 1.0, 1
    while True:
        up, down = np.array([[loss(x + s * m) for m in moves] for s in (1, -1)])
        slope, curve = (up - down) / 0.2, np.diag(up + down - 2 * here)
        for i, j in combinations(range(len(x)), 2):
            curve[i, j] = curve[j, i] = loss(x + moves[i] + moves[j]) - up[i] - up[j] + here
        if not np.isfinite(curve).all():
            return x, np.diag(HYPER_SD), False
        values, vectors = np.linalg.eigh(curve / 0.01)
        values = np.maximum(values, 1.0)  # flat or torn directions: no wider than the priors
        root, used = vectors / np.sqrt(values), used + len(x) * (len(x) + 3) // 2
        newton = -root @ (root.T @ slope)
        newton /= max(1.0, np.linalg.norm(newton))
        settled = bool(-slope @ (np.clip(x + newton, *bounds) - x) < 0.02)
        while True:
            step = (
                np.clip(x + newton * min(1.0, radius / max(np.linalg.norm(newton), 1e-12)), *bounds)
                - x
            )
            if settled or used >= most or radius < 1e-2:
                return x, root, settled
            new, used = loss(x + step), used + 1
            if new < here:
                x, here, radius = x + step, new, min(2 * radius, 1.0)
                break
            radius = np.linalg.norm(step) / 3
