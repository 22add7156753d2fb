"""How an optimizer's updates depend on its gradients, measured by running it."""

import dataclasses
import functools
from collections.abc import Callable, Hashable, Iterable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxsign.compilation import content, undisturbed
from jaxsign.optimizers.adapters import driven
from jaxsign.optimizers.draws import draws
from jaxsign.optimizers.factories import Constant, Static, build, hashable, lasting, traced
from jaxsign.optimizers.leaves import leaf_moves, leaf_rules, name_leaves, same_rule, treated_apart
from jaxsign.optimizers.rules import power_gd, sign_gd, signum, smooth_sign_gd

Factory = Callable[..., optax.GradientTransformation]
#: Steps of a history, and the scales of its gradients. Gradients of the paper's problem run from 1e-4 down to 1e-12.
STEPS, SCALES = 200, (1.0, 1e-6, 1e-12)
#: The step from which the parameters of the case "gone" are 0.
HALF = STEPS // 2
#: Largest deviation from homogeneity, between the first two scales.
LIMIT = 1e-5
#: A history's gradient scale, and which parameters or rescaled gradients it runs with.
Case = tuple[float, str]
Moves = Mapping[Case, np.ndarray]
DECAY_CASES: list[Case] = [(1.0, "still"), (SCALES[1], "still"), (1.0, "gone")]


def reads_gradients_coordinatewise(
    factory: Factory, points: Iterable[Mapping[str, Any]], like: Any, parameters: bool = False
) -> bool:
    """Whether a transform moves each coordinate by its own gradient history only, found by running it.

    Four runs of 8 steps: (a) random gradients; (b) other parameters, and other, much larger gradients on half of the
    coordinates: the updates of the untouched half must not change; (c) one common history for all coordinates of an
    array: their updates must be equal; (d) no gradient at all: no update. Weight decay, clipping by a norm, muon and
    adafactor's factors each fail one of them. A transform that draws random numbers fails, however small they are.

    Args:
      factory: `(**keywords) -> transform`.
      points: keywords of the points to probe; the answer is for all of them.
      like: tree of arrays or ShapeDtypeStructs with the parameters' structure and shapes.
      parameters: whether a coordinate may also read its own parameter, as weight decay does; (d) is then left out.

    Returns:
      True only if every point passes.

    Examples:
      >>> import optax, jax.numpy as jnp
      >>> like = {"w": jnp.zeros((3, 4))}
      >>> reads_gradients_coordinatewise(optax.sgd, [{"learning_rate": 0.1}], like)
      True
      >>> reads_gradients_coordinatewise(optax.adamw, [{"learning_rate": 0.1}], like)
      False
    """
    leaves = jax.tree.leaves(like)
    structure: Any = jax.tree.structure(like)
    shapes = tuple(jax.ShapeDtypeStruct(leaf.shape, leaf.dtype) for leaf in leaves)
    for point in points:
        if draws(factory, [point], like)[0].drawn:
            return False
        if _known(factory, point):
            continue

        def probe(point: Mapping[str, Any] = point) -> bool:
            return _coordinatewise(_program(factory, point, structure), leaves, parameters)

        if not _remembered((factory, dict(point)), (structure, shapes, parameters), probe):
            return False
    return True


#: Factories whose transforms move each coordinate by its own gradients only, whatever their numbers and flags are. They
#: are not run; a test runs them all.
KNOWN = (sign_gd, signum, power_gd, smooth_sign_gd, optax.sgd, optax.adam, optax.rmsprop)


def _known(factory: Factory, point: Mapping[str, Any]) -> bool:
    """Whether a factory is known, and its keywords are plain: a schedule may be the user's, and eps = 0 is 0/0."""
    plain = all(value is None or type(value) in (bool, int, float, Constant) for value in point.values())
    return any(factory is known for known in KNOWN) and plain and point.get("eps") != 0


#: What was measured of transforms, by their content; the oldest go first.
_MEASURED: dict[Hashable, Any] = {}


def _remembered(what: tuple[Factory, Mapping[str, Any]], how: Hashable, measure: Callable[[], Any]) -> Any:
    """What a measurement gives, or gave when a transform of equal content was measured like this before.

    Args:
      what: factory and keywords; a factory that reaches a user's code is measured each time.
      how: everything else that the result depends on.
      measure: the measurement.
    """
    built = content(*what)
    key = (built, how, str(jnp.zeros(()).dtype))
    if built is None:
        return measure()
    if key not in _MEASURED:
        _MEASURED[key] = measure()
        if len(_MEASURED) > 1024:
            del _MEASURED[next(iter(_MEASURED))]
    return _MEASURED[key]


def _coordinatewise(run: Callable[..., list[Any]], leaves: list[Any], parameters: bool) -> bool:
    """The four runs of `reads_gradients_coordinatewise` for one point."""
    rng = np.random.default_rng(0)
    steps = 8

    def draw(scale: float) -> list[np.ndarray]:
        return [scale * rng.standard_normal((steps, *leaf.shape)).astype(leaf.dtype) for leaf in leaves]

    base, other = draw(1e-3), draw(1.0)
    kept = [rng.random(leaf.shape) < 0.5 for leaf in leaves]
    touched = [np.where(k, b, o) for k, b, o in zip(kept, base, other)]
    common = [
        np.broadcast_to(b.reshape(steps, -1)[:, :1].reshape((steps,) + (1,) * (b.ndim - 1)), b.shape) for b in base
    ]
    params = [[p[0] for p in draw(1.0)], [p[0] for p in draw(3.0)]]
    flat = params[0]
    if parameters:
        params[1] = [np.where(k, b, o) for k, b, o in zip(kept, *params)]
        flat = [np.full_like(p, p.flat[0]) for p in params[0]]

    def still(values: list[np.ndarray]) -> list[np.ndarray]:
        return [np.broadcast_to(value, (steps, *value.shape)) for value in values]

    a, b, c = run(still(params[0]), base), run(still(params[1]), touched), run(still(flat), common)
    d = run(still(params[0]), [np.zeros_like(g) for g in base])
    same = all(_close(np.asarray(x)[:, k], np.asarray(y)[:, k]) for x, y, k in zip(a, b, kept))
    rows = (np.asarray(x).reshape(steps, -1) for x in c)
    alike = all(_close(x, np.broadcast_to(x[:, :1], x.shape)) for x in rows)
    return same and alike and (parameters or not any(np.any(np.asarray(x)) for x in d))


def _program(factory: Factory, point: Mapping[str, Any], structure: Any) -> Callable[..., list[Any]]:
    """`(parameter leaves, gradient leaves of every step) -> update leaves of every step` of a point.

    One program serves all points that differ in floats only.
    """
    floats = {name: point[name] for name in traced(point)}
    static = Static(point, floats)
    histories = _histories if lasting(factory, static.keywords) else _histories.__wrapped__
    return functools.partial(histories(hashable(factory), static, structure), floats)


@functools.lru_cache(maxsize=64)
def _histories(factory: Factory, static: Static, structure: Any) -> Callable[..., Any]:
    """The jitted `(floats, parameter leaves, gradient leaves of every step) -> update leaves of every step`.

    Cached, since one sweep after the other probes the same optimizer. The loss that a transform may read is constant.
    """

    @jax.jit
    def program(floats: Mapping[str, Any], params: Any, gradients: Any) -> Any:
        key = jax.random.key(0, impl="threefry2x32")
        transform = build(factory, {**static.keywords, **floats}, key)
        return driven(transform, structure.unflatten, params, gradients)

    def run(*arguments: Any) -> Any:
        with jax.numpy_dtype_promotion("standard"):  # some of Optax's own transforms promote
            return program(*arguments)

    return run


def _close(a: np.ndarray, b: np.ndarray) -> bool:
    return bool(np.allclose(a, b, rtol=1e-5, atol=0.0, equal_nan=True))


@dataclasses.dataclass(frozen=True)
class Homogeneity:
    """How a transform's updates change with the scale and sign of a whole gradient history.

    Args:
      p: measured exponent, u(c g) = c^p u(g); NaN if there is none.
      odd: whether u(-g) = -u(g).
      deviation: {gradient scale: largest |u(c g) - c^p u(g)| relative to the root mean square of c^p u(g)}.
      decays: whether updates also contain the parameters times one number a step: decoupled weight decay.
      signs: whether updates depend on each gradient through its sign only.
      reason: why feature space does not cover the transform; "" if it does.
    """

    p: float
    odd: bool
    deviation: Mapping[float, float]
    decays: bool
    signs: bool
    reason: str


def homogeneity(factory: Factory, points: Iterable[Mapping[str, Any]], like: Any = None) -> list[Homogeneity]:
    """Drives each point of an optimizer with histories of one shape at several scales, signs and parameters.

        u(c g_0, ..., c g_t) = sgn(c) |c|^p u(g_0, ..., g_t)  for c = +-1, +-1e-6, +-1e-12

    Args:
      factory: `(**keywords) -> transform`, coordinate-wise.
      points: keywords of each point.
      like: tree of arrays or ShapeDtypeStructs with the parameters' structure and shapes, whose arrays may have rules
        of their own, as with `optax.partition`; the exponent must then be that of them all. Default: one array.

    Returns:
      One Homogeneity a point.

    Examples:
      >>> import optax
      >>> [measured] = homogeneity(optax.sgd, [{"learning_rate": 0.1}])
      >>> measured.p, measured.reason
      (1.0, '')
    """
    cases = [(sign * scale, "none") for scale in SCALES for sign in (1, -1)]
    cases += [*DECAY_CASES, (1.0, "rescaled")]

    def alone(point: Mapping[str, Any]) -> Homogeneity:
        return _judge(*_moves(factory, point, cases), point)

    def together(point: Mapping[str, Any]) -> Homogeneity | None:
        """None where every array has the rule of one array by itself."""
        rules = dict(zip(map(".".join, name_leaves(like)), leaf_rules(factory, point, like)))
        alone = _rule_alone(factory, point)
        if alone is not None and all(same_rule(alone, rule) for rule in rules.values()):
            return None
        return _joint(_of_arrays(factory, point, cases, like, rules))

    measured = []
    for point in points:
        what, of_tree = (factory, dict(point)), None
        if like is not None and not _known(factory, point):
            shapes = tuple((leaf.shape, leaf.dtype) for leaf in jax.tree.leaves(like))
            of_tree = _remembered(what, (jax.tree.structure(like), shapes), functools.partial(together, point))
        measured.append(of_tree or _remembered(what, "homogeneity", functools.partial(alone, point)))
    return measured


def told_apart(factory: Factory, points: Iterable[Mapping[str, Any]], like: Any, reference: Any) -> list[str]:
    """The array of a tree that each point moves by another rule than the array of a reference it stands for, or "".

    Args:
      factory: `(**keywords) -> transform`, coordinate-wise.
      points: keywords of each point.
      like: tree of arrays or ShapeDtypeStructs that is trained.
      reference: tree whose arrays have the first names of those of `like`.

    Returns:
      One path a point, such as "w_v.signal", or "".
    """
    how = tuple((jax.tree.structure(t), *((x.shape, x.dtype) for x in jax.tree.leaves(t))) for t in (like, reference))
    return [
        ""
        if _known(factory, point)
        else _remembered((factory, dict(point)), how, functools.partial(treated_apart, factory, point, like, reference))
        for point in points
    ]


def _rule_alone(factory: Factory, point: Mapping[str, Any]) -> np.ndarray | None:
    """The rule of one array by itself; None for an optimizer that does not take one."""
    try:
        return leaf_rules(factory, point, jnp.zeros(()))[0]
    except Exception:  # of any kind: a function that looks for the names of the tree's arrays
        return None


def _of_arrays(
    factory: Factory, point: Mapping[str, Any], cases: list[Case], like: Any, rules: Mapping[str, np.ndarray]
) -> dict[str, Homogeneity]:
    """{path of an array: what was measured of it}, one array of every rule; arrays that never move are left out."""
    run = leaf_moves(factory, point, like)
    histories, theta = _histories_of(cases)
    moved = {case: run(*history) for case, history in histories.items()}
    out: dict[str, Homogeneity] = {}
    for place, (name, rule) in enumerate(rules.items()):
        if rule.any() and not any(same_rule(rule, rules[other]) for other in out):
            out[name] = _judge({case: updates[place] for case, updates in moved.items()}, theta, point)
    return out


def _joint(measured: Mapping[str, Homogeneity]) -> Homogeneity:
    """The verdict on a tree whose arrays have rules of their own."""
    if not measured:
        return Homogeneity(np.nan, False, {}, False, False, "it moves nowhere")
    reasons = [f"{name}: {found.reason}" for name, found in measured.items() if found.reason]
    exponents = {name: found.p for name, found in measured.items()}
    if not reasons and len(set(exponents.values())) > 1:
        reasons = ["the exponent must be one for all parameters, measured " + ", ".join(
            f"{p:g} of {name}" for name, p in exponents.items()
        )]  # fmt: skip
    everything = measured.values()
    return Homogeneity(
        p=next(iter(exponents.values())),
        odd=all(found.odd for found in everything),
        deviation={scale: max(found.deviation.get(scale, np.nan) for found in everything) for scale in SCALES},
        decays=any(found.decays for found in everything),
        signs=all(found.signs for found in everything),
        reason="; ".join(reasons),
    )


def decay(factory: Factory, points: Iterable[Mapping[str, Any]]) -> list[str]:
    """Why the parameters' part in each point's updates is not decoupled weight decay; "" where it is, or is none.

    Args:
      factory: `(**keywords) -> transform`, coordinate-wise.
      points: keywords of each point.

    Returns:
      One sentence a point, or "".

    Examples:
      >>> import optax
      >>> decay(optax.adamw, [{"learning_rate": 0.1}])
      ['']
    """
    cases = [(1.0, "none"), (SCALES[1], "none"), *DECAY_CASES]

    def probe(point: Mapping[str, Any]) -> str:
        moves, theta = _moves(factory, point, cases)
        return _not_finite(moves, point) or _decay(moves, theta)[1]

    return [_remembered((factory, dict(point)), "decay", functools.partial(probe, point)) for point in points]


def _moves(factory: Factory, point: Mapping[str, Any], cases: list[Case]) -> tuple[Moves, Any]:
    """({case: the updates of a point (steps, coordinates)}, parameters)."""
    run = _program(factory, point, jax.tree.structure(0))
    histories, theta = _histories_of(cases)
    return {case: np.asarray(run([w], [g])[0], float) for case, (w, g) in histories.items()}, theta


def _histories_of(cases: list[Case]) -> tuple[dict[Case, tuple[np.ndarray, np.ndarray]], np.ndarray]:
    """({case: (parameters (steps, coordinates), gradients)}, parameters)."""
    rng = np.random.default_rng(0)
    dtype = jnp.zeros(()).dtype
    g = rng.standard_normal((STEPS, 32)).astype(dtype)
    g[:, 0] = 0  # an unused coordinate
    theta = (1e3 * rng.standard_normal(32)).astype(dtype)  # large, so that decay stands out beside the update
    still = np.broadcast_to(theta, g.shape)
    params = {"none": np.zeros_like(g), "still": still, "gone": np.where(np.arange(STEPS)[:, None] < HALF, still, 0)}
    factors = {"rescaled": (10.0 ** rng.uniform(-6, 6, g.shape)).astype(dtype)}
    histories = {
        (scale, how): (params.get(how, params["none"]), g * dtype.type(scale) * factors.get(how, dtype.type(1)))
        for scale, how in cases
    }
    return histories, theta.astype(float)


def _not_finite(moves: Moves, point: Mapping[str, Any]) -> str:
    """Why updates are unusable: not finite, or an unused coordinate moves; "" if they are usable."""
    if not all(np.isfinite(u).all() for u in moves.values()):
        why = "; eps=0 is 0/0 there" if point.get("eps") == 0 else ""
        return f"its updates are not finite where a gradient is 0{why}"
    if not moves[1.0, "none"].any() or any(u[:, 0].any() for (_, at), u in moves.items() if at == "none"):
        return "it moves where the gradient is 0, or nowhere"
    return ""


def _decay(moves: Moves, theta: np.ndarray) -> tuple[bool, str]:
    """(whether updates read the parameters, why that is not decoupled weight decay or "")."""
    base = moves[1.0, "none"]
    factors = np.stack([moves[scale, "still"] - moves[scale, "none"] for scale in SCALES[:2]]) / theta
    rates = factors[0, :, :1]
    decays = bool(factors[0].any())
    spread = np.max(np.abs(factors - rates))
    remembered = np.max(np.abs((moves[1.0, "gone"] - base)[HALF:]))
    if decays and spread > 1e-3 * np.max(np.abs(rates)):
        return decays, "its updates read the parameters in another way than by decoupled weight decay"
    if remembered > LIMIT * np.sqrt(np.mean(base**2)):
        return decays, "its state remembers the parameters: the weight decay is not decoupled"
    return decays, ""


def _judge(moves: Moves, theta: np.ndarray, point: Mapping[str, Any]) -> Homogeneity:
    """The verdict on the updates of all cases."""
    base = moves[1.0, "none"]
    wrong = _not_finite(moves, point)
    if wrong:
        return Homogeneity(np.nan, False, {}, False, False, wrong)
    sizes = []
    for low, high in ((SCALES[1], SCALES[0]), (SCALES[2], SCALES[1])):
        moving = (moves[high, "none"] != 0) & (moves[low, "none"] != 0)
        ratio = np.abs(moves[low, "none"][moving] / moves[high, "none"][moving])
        sizes.append(float(np.median(np.log(ratio)) / np.log(low / high)) if ratio.size else np.nan)
    digits = 6 if jnp.zeros(()).dtype == jnp.float32 else 9
    p = abs(round(sizes[0], digits))
    deviation, odd = {}, True
    for scale in SCALES:
        plus, minus = moves[scale, "none"], moves[-scale, "none"]
        size = np.sqrt(np.mean((scale**p * base) ** 2))
        deviation[scale] = float(np.max(np.abs(plus - scale**p * base)) / size)
        odd &= bool(np.max(np.abs(plus + minus)) <= LIMIT * size)
    decays, reason = _decay(moves, theta)
    if deviation[SCALES[1]] > LIMIT:
        eps = point.get("eps")
        named = f"eps={eps:g}" if isinstance(eps, float) else "an eps"
        floor = sizes[1] > sizes[0] + 0.1  # steeper where gradients are smaller
        why = f"; {named} that gradients come down to does this, take eps <= 1e-15" if floor else ""
        reason = (
            f"its updates are not homogeneous in the gradients: measured exponent {sizes[0]:.2g} between gradient "
            f"scales 1 and 1e-6 (deviation {deviation[SCALES[1]]:.1e} > {LIMIT:g}), {sizes[1]:.2g} between 1e-6 and "
            f"1e-12{why}"
        )
    elif not odd:
        reason = "its updates are not odd in the gradients: u(-g) is not -u(g)"
    signs = p == 0 and np.array_equal(moves[1.0, "rescaled"], base)
    return Homogeneity(p, odd, deviation, decays, signs, reason)


class Degree(NamedTuple):
    """The result of `degree`."""

    coordinatewise: bool
    odd: bool
    p: float


@undisturbed()
def degree(transform: optax.GradientTransformation) -> Degree:
    """Measures how a transform's updates scale with the whole gradient history: engine="hybrid" is built on it.

        u(c g_0, ..., c g_t) = sgn(c) |c|^p u(g_0, ..., g_t)

    Args:
      transform: an Optax transform; decoupled weight decay is allowed.

    Returns:
      Degree(coordinatewise, odd, p): p = 0 for SignGD and for Adam with eps -> 0, p = 1 for GD; NaN if updates are not
      homogeneous in the default float dtype.

    Examples:
      >>> import jaxsign as js
      >>> degree(js.sign_gd(1e-4))
      Degree(coordinatewise=True, odd=True, p=0.0)

    References:
      Derived here from the model of arXiv 2410.04870.
    """
    if not isinstance(transform, optax.GradientTransformation):
        raise ValueError(f"transform must be an optax.GradientTransformation, got {transform!r}")
    like = {"w": jnp.zeros((6, 5)), "v": jnp.zeros((7,))}
    alone = reads_gradients_coordinatewise(lambda: transform, [{}], like, parameters=True)
    [measured] = homogeneity(lambda: transform, [{}])
    return Degree(alone, measured.odd, np.nan if measured.reason else measured.p)


def sign_like(factory: Factory, points: Iterable[Mapping[str, Any]], like: Any) -> list[str]:
    """Why each point moves coordinates by something else than amplitude * {-1, 0, +1}, found by running it; "" if not.

    Args:
      factory: `(**keywords) -> transform`.
      points: keywords of the points to probe.
      like: tree of arrays or ShapeDtypeStructs with the parameters' structure and shapes.

    Examples:
      >>> import optax, jax.numpy as jnp, jaxsign as js
      >>> sign_like(js.sign_gd, [{"learning_rate": 0.5}], {"w": jnp.zeros((3, 4))})
      ['']
      >>> sign_like(optax.lion, [{"learning_rate": 0.5}], {"w": jnp.zeros((3, 4))})  # for its weight decay
      ['at step 0 one array moves by sizes from 0.499 to 0.501']
    """
    rng = np.random.default_rng(0)
    leaves, structure = jax.tree.flatten(like)
    steps = 8
    params, gradients = ([rng.standard_normal((steps, *x.shape)).astype(x.dtype) for x in leaves] for _ in range(2))
    reasons = []
    for point in points:
        reasons.append("")
        for update in _program(factory, point, structure)(params, gradients):
            for step, size in enumerate(np.abs(np.asarray(update)).reshape(steps, -1)):
                moving = size[size != 0]
                if moving.size and not reasons[-1] and moving.min() != moving.max():
                    reasons[-1] = (
                        f"at step {step} one array moves by sizes from {moving.min():.3g} to {moving.max():.3g}"
                    )
    return reasons
