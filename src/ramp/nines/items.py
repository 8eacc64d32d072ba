"""Which items are hard, how able each checkpoint is, and what fails whatever the ability: a hierarchical item model.

    successes_mis ~ BetaBinomial(trials_mis, mean p, precision φ)             φ: correlation of repeats, 1 / (φ + 1)
    p = chance + (1 - chance - lapse_m) · sigmoid(θ_m - β x_i - family_i - e_i - δ_s)
    family ~ N(0, sd_family²)   e ~ N(0, sd_item²)   logit lapse_m = λ0 + λ1 progress_m

A lapse is a failure that ability does not mend. Without it "nines" would be an artefact of the logistic's tail. δ of the
first slice is 0; the others are free to help or to hurt. Fitted by marginal Laplace (as in INLA, Rue et al. 2009): Newton
over all effects, item effects eliminated by a Schur complement, so that a step costs O(cells · effects²), then integrated
by adaptive quadrature; Newton over (sd_item, sd_family, φ) on the evidence. float64 on the CPU, whatever the rest of the
program computes in.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from itertools import combinations

import jax
import jax.numpy as jnp
import numpy as np

from ramp.errors import UserError
from ramp.nines.trials import Table, progress

# log sd_item, log sd_family, log φ: prior means and standard deviations
HYPER_MEAN, HYPER_SD = np.array([0.0, -0.5, 2.0]), np.array([1.0, 1.0, 1.5])
LAPSE, TREND = (-4.5, 1.5), (-0.5, 0.5)  # λ0 at the last checkpoint, λ1 per decade: mean, standard deviation


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
    x = progress(t)[0] if _has_progress(t) else np.zeros(len(t["run"]))
    x = np.maximum(x, min(x[np.isfinite(x)], default=0.0) - 1)  # step 0 has no logarithm: a decade before the first
    label = np.array([f"{t_}\0{i}" for t_, i in zip(t["task"], t["item"], strict=True)])
    items, first, item = np.unique(label, return_index=True, return_inverse=True)
    if len(items) < 2:
        raise UserError("one item cannot tell how items differ; give two or more distinct items")
    families, family = np.unique(np.where(t["family"] == "", t["task"], t["family"]), return_inverse=True)
    names = np.unique(t["slice"])
    slices = sorted(names, key=lambda s: (s != "base", s))
    slice_ = np.searchsorted(names, t["slice"])
    slice_ = np.array([slices.index(s) for s in names])[slice_]
    order = np.array([f"{r}\0{v:020.12f}" for r, v in zip(t["run"], x + 100, strict=True)])
    _, at, model = np.unique(order, return_index=True, return_inverse=True)
    key, place, of = np.unique(np.stack([model, item, slice_]), axis=1, return_index=True, return_inverse=True)
    count = np.bincount(of.ravel()).astype(float)
    wins = np.bincount(of.ravel(), t["success"])
    hard = t["difficulty"][first] - t["difficulty"][first].mean()
    runs = [(str(t["run"][i]), float(x[i])) for i in at]
    names = [i.replace("\0", "/") for i in items.tolist()]
    return Cells(
        *key, wins, count, t["chance"][place], x[at] - x[at].max(), runs, names, list(map(str, slices)),
        family[first], hard, families.tolist(),
    )  # fmt: skip


def _has_progress(t: Table) -> bool:
    return not (np.isnan(t["step"]).any() and np.isnan(t["compute"]).any())


def _log_gamma(z: jax.Array) -> jax.Array:
    """Stirling's series at z + 8: elementary, so that its third derivative, which Laplace needs, is cheap."""
    shift = z + 8.0
    product = jnp.log(z) + jnp.log((z + 1) * (z + 2) * (z + 3)) + jnp.log((z + 4) * (z + 5) * (z + 6) * (z + 7))
    series = 1 / (12 * shift) - 1 / (360 * shift**3) + 1 / (1260 * shift**5)
    return (shift - 0.5) * jnp.log(shift) - shift + 0.5 * np.log(2 * np.pi) + series - product


def _log_likelihood(eta: jax.Array, lapse: jax.Array, log_phi: jax.Array, d: dict) -> jax.Array:
    """[C] beta-binomial log-likelihood, without the binomial coefficient."""
    p = d["chance"] + (1 - d["chance"] - jax.nn.sigmoid(lapse)) * jax.nn.sigmoid(eta)
    phi, p = jnp.exp(log_phi), jnp.clip(p, 1e-8, 1 - 1e-8)
    a, b, n = p * phi, (1 - p) * phi, d["count"]
    phi = jnp.broadcast_to(phi, n.shape)
    # One call on six rows: an eighth of the program to compile.
    rows = _log_gamma(jnp.stack([a + d["wins"], b + n - d["wins"], phi, a, b, phi + n]))
    return rows[:3].sum(0) - rows[3:].sum(0)


def _pieces(g: jax.Array, e: jax.Array, h: jax.Array, d: dict, items: int) -> tuple:
    """Negative log posterior, its gradient and Hessian: over effects (gg), effects × items (ge), items (ee)."""
    prior = jnp.where(d["is_family"], jnp.exp(-2 * h[1]), d["precision"])

    def total(eta, lapse):
        return -_log_likelihood(eta, lapse, h[2], d).sum()

    x, lam = d["x"], d["lapse"]
    eta, lapse = x @ g - e[d["item"]], lam @ g
    slope = jax.grad(total, (0, 1))  # cell by cell, so a jvp with ones is the diagonal of the Hessian
    (u, v), (uu, uv) = jax.jvp(slope, (eta, lapse), (jnp.ones_like(eta), jnp.zeros_like(eta)))
    vv = jax.jvp(slope, (eta, lapse), (jnp.zeros_like(eta), jnp.ones_like(eta)))[1][1]
    segment = partial(jax.ops.segment_sum, segment_ids=d["item"], num_segments=items)
    off = g - d["center"]
    value = total(eta, lapse) + 0.5 * (prior * off**2 - jnp.log(prior)).sum()
    value += 0.5 * (e**2).sum() * jnp.exp(-2 * h[0]) + items * h[0]
    grad_g = x.T @ u + lam.T @ v + prior * off
    grad_e = -segment(u) + e * jnp.exp(-2 * h[0])
    cross = (x * uv[:, None]).T @ lam
    gg = (x * uu[:, None]).T @ x + cross + cross.T + (lam * vv[:, None]).T @ lam + jnp.diag(prior)
    ge = -segment(x * uu[:, None] + lam * uv[:, None])  # [I, P]
    ee = jnp.maximum(segment(uu) + jnp.exp(-2 * h[0]), 0.2 * jnp.exp(-2 * h[0]))
    return value, grad_g, grad_e, gg, ge, ee


def _solve(grad_g, grad_e, gg, ge, ee, damping) -> tuple[jax.Array, jax.Array]:
    ee = ee * (1 + damping)
    schur = gg + damping * jnp.diag(jnp.abs(jnp.diag(gg))) - ge.T @ (ge / ee[:, None])
    step = jnp.linalg.solve(schur, grad_g - ge.T @ (grad_e / ee))
    return step, (grad_e - ge @ step) / ee


@partial(jax.jit, static_argnums=4)
def _laplace(g: jax.Array, e: jax.Array, h: jax.Array, d: dict, items: int) -> tuple[jax.Array, ...]:
    """The mode over effects g with the items integrated out, and the items' mode e there, started from those given; the
    negative log evidence of the hyperparameters; the precision of g. Levenberg-Marquardt finds the joint mode first:
    damping grows where a step fails."""

    def body(state):
        g, e, damping, value, _, i = state
        _, *pieces = _pieces(g, e, h, d, items)
        dg, de = _solve(*pieces, damping)
        new = _pieces(g - dg, e - de, h, d, items)[0]
        better = new <= value  # False for nan as well
        gain = jnp.where(better, value - new, jnp.inf)
        g, e = jnp.where(better, g - dg, g), jnp.where(better, e - de, e)
        damping = jnp.where(better, damping * 0.1, jnp.maximum(damping * 10, 1e-3))
        return g, e, damping, jnp.where(better, new, value), gain, i + 1

    start = (g, e, jnp.asarray(1e-3), _pieces(g, e, h, d, items)[0], jnp.asarray(jnp.inf), 0)
    g, e, *_ = jax.lax.while_loop(lambda s: (s[4] > 1e-5) & (s[5] < 60) & (s[2] < 1e9), body, start)

    def refine(_, state):
        """From the joint mode to the mode over effects with the items integrated out, which is less shrunk."""
        g, e = state
        _, _, grad_e, gg, ge, ee = _pieces(g, e, h, d, items)
        e = e - grad_e / ee
        slope = jax.grad(_marginal)(g, e, 1 / jnp.sqrt(ee), h, d, items)
        step = jnp.linalg.solve(gg - ge.T @ (ge / ee[:, None]), slope)
        return g - step, e + (ge @ step) / ee

    g, e = jax.lax.fori_loop(0, 2, refine, (g, e))
    _, _, grad_e, gg, ge, ee = _pieces(g, e, h, d, items)
    e, schur = e - grad_e / ee, gg - ge.T @ (ge / ee[:, None])
    half = jnp.log(jnp.diag(jnp.linalg.cholesky(schur))).sum()
    value = _marginal(g, e, 1 / jnp.sqrt(ee), h, d, items) + half
    return g, e, value + 0.5 * (((h - HYPER_MEAN) / HYPER_SD) ** 2).sum(), schur


def _marginal(g: jax.Array, e: jax.Array, sd: jax.Array, h: jax.Array, d: dict, items: int) -> jax.Array:
    """Negative log posterior of the effects, each item integrated by quadrature around its mode e, with its width sd."""
    prior = jnp.where(d["is_family"], jnp.exp(-2 * h[1]), d["precision"])
    eta, lapse = d["x"] @ g, d["lapse"] @ g

    def at(node: jax.Array) -> jax.Array:
        effect = e + sd * node
        cell = _log_likelihood(eta - effect[d["item"]], lapse, h[2], d)
        of_item = jax.ops.segment_sum(cell, d["item"], num_segments=items)
        return of_item - 0.5 * effect**2 * jnp.exp(-2 * h[0]) - h[0] + 0.5 * node**2

    nodes, mass = np.polynomial.hermite_e.hermegauss(5)
    total = jax.nn.logsumexp(jax.lax.map(at, jnp.asarray(nodes)) + jnp.log(mass)[:, None], axis=0) + jnp.log(sd)
    return -total.sum() + 0.5 * (prior * (g - d["center"]) ** 2 - jnp.log(prior)).sum()


def fit(c: Cells, draws: int = 400, seed: int = 0) -> ItemFit:
    """Posterior draws of every effect; about a second for 10,000 cells, once compiled."""
    m, f, s, i = len(c.models), len(c.families), len(c.slices), len(c.items)
    names = [f"ability {r} {x:g}" for r, x in c.models] + ["difficulty"] + [f"family {n}" for n in c.families]
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
    with jax.enable_x64(True), jax.default_device(jax.devices("cpu")[0]):
        d = {
            "x": x, "lapse": lam, "item": c.item, "wins": c.wins, "count": c.count, "chance": c.chance,
            "precision": 1 / sd**2, "center": center, "is_family": np.array([a.startswith("family ") for a in names]),
        }  # fmt: skip
        d = jax.tree.map(jnp.asarray, d)
        mode = [jnp.asarray(center), jnp.zeros(i)]

        def loss(h: np.ndarray) -> float:
            g, e, value, _ = _laplace(*mode, jnp.asarray(h), d, i)
            if not np.isfinite(value):
                return 1e12
            mode[:] = g, e  # the next search starts here
            return float(value)

        bounds = np.array([(-4, -4, -2), (2.5, 2.5, 7)])
        peak, root = _peak(loss, HYPER_MEAN, bounds)
        rng, blocks, effects, hypers = np.random.default_rng(seed), 8, [], []
        z = rng.standard_normal((blocks // 2, 3))
        z = np.concatenate([np.zeros((1, 3)), z, -z])  # in pairs, so that their mean is the mode
        for k in range(blocks + 1):  # the first at the mode
            h = np.clip(peak + root @ z[k], *bounds)
            g, e, _, precision = (np.asarray(a) for a in _laplace(*mode, jnp.asarray(h), d, i))
            cov = _covariance(precision)
            if not k:
                mean, first, at_mode = g, cov, e
                continue
            size = draws // blocks + (k <= draws % blocks)
            effects.append(rng.multivariate_normal(g, cov, size, method="eigh"))
            hypers.append(np.tile(np.exp(h), (size, 1)))
    return ItemFit(c, names, np.concatenate(effects), np.concatenate(hypers), at_mode, mean, first)


def _covariance(precision: np.ndarray) -> np.ndarray:
    values, vectors = np.linalg.eigh((precision + precision.T) / 2)
    return (vectors / np.maximum(values, 1e-3)) @ vectors.T


def _peak(loss: Callable[[np.ndarray], float], x: np.ndarray, bounds: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Newton on differences over a tenth: (where `loss` is least, a root of its inverse Hessian). Steps of at most 1 in all."""
    moves = 0.1 * np.eye(len(x))
    for _ in range(12):
        middle, up, down = loss(x), [loss(x + m) for m in moves], [loss(x - m) for m in moves]
        slope = (np.array(up) - down) / 0.2
        curve = np.diag(np.array(up) + down - 2 * middle)
        for i, j in combinations(range(len(x)), 2):
            curve[i, j] = curve[j, i] = loss(x + moves[i] + moves[j]) - up[i] - up[j] + middle
        values, vectors = np.linalg.eigh(curve / 0.01)
        values = np.maximum(values, 1.0)  # flat or torn directions: no wider than the priors
        step = vectors @ (vectors.T @ slope / values)
        x = np.clip(x - step / max(1.0, np.linalg.norm(step)), *bounds)
        if np.abs(step).max() < 0.05:
            break
    return x, vectors / np.sqrt(values)
