"""When masks are updated, and how sparse they are then."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given
from hypothesis import strategies as st

import gradprune_jax as gp
from gradprune_jax._schedules import progress


def updates_of(schedule, steps):
    return [step for step in range(steps) if schedule.is_update_step(step)]


windows = st.tuples(st.integers(0, 60), st.integers(0, 60), st.integers(1, 40))


@given(windows, st.floats(0, 1, width=32), st.floats(0, 1, width=32))
def test_updates_at_begin_then_every_then_always_at_the_end(window, initial, final):
    begin, length, every = window
    end = begin + length
    schedule = gp.polynomial_schedule(final, begin, end, every, initial)
    expected = sorted({*range(begin, end + 1, every), end})
    assert updates_of(schedule, 200) == expected == list(schedule.update_steps)


@given(windows, st.floats(0, 1, width=32), st.floats(0, 1, width=32))
def test_exactly_initial_up_to_begin_and_exactly_final_from_the_end(window, s_i, s_f):
    begin, length, every = window
    end = begin + length + 1
    schedule = gp.polynomial_schedule(s_f, begin, end, every, s_i)
    for step in (0, begin):
        assert schedule.sparsity(step) == np.float32(s_i)
    for step in (end, end + 1, 10**9):
        assert schedule.sparsity(step) == np.float32(s_f)


@pytest.mark.parametrize("power", [1, 2, 3, 2.5])
def test_equation_1_rounded_once_from_float64(power):
    schedule = gp.polynomial_schedule(0.9, 100, 1_050, 50, 0.2, power)
    for step in schedule.update_steps[:-1]:
        value = 0.9 + (0.2 - 0.9) * (1 - (step - 100) / 950) ** power
        assert schedule.sparsity(step) == np.float32(value)
        assert schedule.sparsity(step).dtype == jnp.float32


def test_sparsity_between_updates_is_that_of_the_last_update():
    schedule = gp.polynomial_schedule(0.8, 10, 95, every=20)
    for step in range(10, 95):
        last = max(s for s in schedule.update_steps if s <= step)
        assert schedule.sparsity(step) == schedule.sparsity(last)


def test_the_same_value_in_every_fusion_traced_or_not():
    schedule = gp.polynomial_schedule(0.873, 3, 10_007, every=7, initial_sparsity=0.01)
    steps = np.arange(0, 10_100, 13)
    eager = np.array([schedule.sparsity(int(step)) for step in steps[:50]])
    fused = jax.jit(lambda s: schedule.sparsity(s) * 3 / 3 * 0 + schedule.sparsity(s))
    np.testing.assert_array_equal(jax.vmap(schedule.sparsity)(steps)[:50], eager)
    np.testing.assert_array_equal(fused(steps)[:50], eager)


def test_an_early_first_update_prunes_nothing_at_initial_sparsity_zero():
    """Others pruned 2.4 % at t0 of a 100-step window."""
    schedule = gp.polynomial_schedule(0.8, 0, 100, every=1)
    assert schedule.is_update_step(0)
    assert schedule.sparsity(0) == 0


@pytest.mark.parametrize(
    ("begin", "end", "every"), [(0, 199, 100), (150, 390, 100), (1, 999, 1_000)]
)
def test_a_window_whose_end_is_off_the_grid_reaches_the_final_sparsity(
    begin, end, every
):
    """Others stopped at 0.7045, 0.759 and 0.0 of a target of 0.8."""
    schedule = gp.polynomial_schedule(0.8, begin, end, every)
    last = updates_of(schedule, end + 1_000)[-1]
    assert last == end
    assert schedule.sparsity(last) == np.float32(0.8)


def test_updates_count_from_begin_not_from_zero():
    schedule = gp.polynomial_schedule(0.8, 7, 27, every=10)
    assert updates_of(schedule, 100) == [7, 17, 27]


def test_cubic_means_fast_at_first_then_slow():
    """One tool's "cube" is p^3, slow at first."""
    schedule = gp.polynomial_schedule(0.8, 0, 100, every=1)
    assert schedule.sparsity(50) == np.float32(0.8 * (1 - 0.5**3))


def test_one_shot():
    schedule = gp.one_shot_schedule(0.6, step=5)
    assert updates_of(schedule, 20) == [5]
    assert schedule.sparsity(4) == 0
    assert schedule.sparsity(5) == np.float32(0.6)


@pytest.mark.parametrize(
    "fn",
    [
        optax.linear_schedule(0.1, 0.5, 100),
        optax.cosine_decay_schedule(0.5, 100),
        lambda step: 0.5 if step >= 50 else 0.0,
        lambda step: 0.005 * step,
        lambda step: jnp.minimum(step.astype(jnp.float32) / 200, 0.5),
    ],
)
def test_custom_takes_any_callable(fn):
    schedule = gp.custom_schedule(fn, 0, 100, every=10)
    for step in schedule.update_steps:
        assert schedule.sparsity(step) == np.float32(fn(np.int32(step)))
    assert schedule.sparsity(10**6) == np.float32(fn(np.int32(100)))
    inside_jit = jax.jit(lambda s: gp.custom_schedule(fn, 0, 100, 10).sparsity(s))
    assert inside_jit(50) == schedule.sparsity(50)


@pytest.mark.parametrize(
    ("arguments", "name"),
    [
        (dict(final_sparsity=90), "final_sparsity"),
        (dict(final_sparsity=-0.1), "final_sparsity"),
        (dict(final_sparsity=float("nan")), "final_sparsity"),
        (dict(final_sparsity="0.9"), "final_sparsity"),
        (dict(final_sparsity=[0.1, 0.9]), "final_sparsity"),
        (dict(initial_sparsity=1.5), "initial_sparsity"),
        (dict(begin_step=200), "end_step"),
        (dict(begin_step=-1), "begin_step"),
        (dict(begin_step=-10, end_step=-1), "begin_step"),
        (dict(begin_step=1.0), "begin_step"),
        (dict(begin_step=True), "begin_step"),
        (dict(end_step=2**31), "end_step"),
        (dict(every=0), "every"),
        (dict(every=-5), "every"),
        (dict(every=0.5), "every"),
        (dict(final_sparsity=None), "final_sparsity"),
        (dict(final_sparsity=0.9j), "final_sparsity"),
        (dict(power="a"), "power"),
        (dict(power=0), "power"),
        (dict(power=float("inf")), "power"),
    ],
)
def test_bad_values_are_refused_with_argument_value_and_range(arguments, name):
    good = dict(final_sparsity=0.9, begin_step=0, end_step=100, every=10)
    with pytest.raises(ValueError, match=name) as error:
        gp.polynomial_schedule(**(good | arguments))
    value = (good | arguments)[name]
    assert str(value) in str(error.value)
    assert "must" in str(error.value)


def test_bad_custom_and_one_shot_values_are_refused():
    with pytest.raises(ValueError, match=r"fn\(50\) is 1.5"):
        gp.custom_schedule(lambda step: 1.5 if step == 50 else 0, 0, 100, 50)
    for wrong in (lambda step: None, lambda step: jnp.array([0.9])):
        with pytest.raises(ValueError, match=r"fn\(0\) is .*one number in"):
            gp.custom_schedule(wrong, 0, 100, 50)
    with pytest.raises(ValueError, match="fn is 0.5"):
        gp.custom_schedule(0.5, 0, 100, 50)
    with pytest.raises(ValueError, match="step is -1"):
        gp.one_shot_schedule(0.5, -1)


def test_traced_sparsities_pass_and_agree_with_numbers():
    """Range checks written in Python raise on tracers."""

    def values(final, step):
        return gp.polynomial_schedule(final, 0, 100, every=10).sparsity(step)

    targets = jnp.array([0.5, 0.8, 0.9])
    swept = jax.vmap(values, in_axes=(0, None))(targets, 40)
    numbers = [values(float(target), 40) for target in targets]
    np.testing.assert_allclose(swept, np.array(numbers), rtol=1e-6)
    np.testing.assert_array_equal(jax.jit(values)(0.7, 100), np.float32(0.7))
    jax.jit(lambda b: gp.polynomial_schedule(0.5, b, b + 10, 1).is_update_step(3))(2)
    custom = jax.jit(
        lambda f: gp.custom_schedule(lambda t: f * t / 10, 0, 10, 5).sparsity(5)
    )
    np.testing.assert_allclose(custom(0.5), 0.25)


def test_schedules_of_numbers_are_values():
    one, same = (gp.polynomial_schedule(0.9, 0, 100) for _ in range(2))
    assert one == same
    assert hash(one) == hash(same)
    assert one != gp.polynomial_schedule(0.9, 0, 101)
    assert not callable(one)  # inject_hyperparams would evaluate it


class Curve:
    """A function that counts its calls and, as any dataclass, has no hash."""

    __hash__ = None

    def __init__(self):
        self.steps = []

    def __call__(self, step):
        self.steps.append(int(step))
        return step / 100


@pytest.mark.parametrize(
    ("window", "steps"),
    [
        ((0, 50, 10), [0, 10, 20, 30, 40, 50]),
        ((3, 20, 9), [3, 12, 20]),
        ((4, 4, 1), [4]),
    ],
)
def test_a_function_is_evaluated_once_for_each_mask_update(window, steps):
    """It was evaluated twice at both ends, and again for ERK."""
    curve = Curve()
    schedule = gp.custom_schedule(curve, *window)
    for step in (0, 17, 60):
        schedule.sparsity(step)
        progress(schedule, step)
    rule = gp.Rule(schedule, allocation="erk")
    gp.plan(rule, {"kernel": jnp.ones((4, 4))})
    assert curve.steps == steps == list(schedule.update_steps)
    assert schedule.sparsity(window[1]) == np.float32(window[1] / 100)


def test_schedules_of_numbers_can_be_hashed_whatever_their_function():
    schedule = gp.custom_schedule(Curve(), 0, 50, 10)
    assert hash(schedule) == hash(dataclasses.replace(schedule))
    assert schedule == dataclasses.replace(schedule)
    assert hash(gp.Rule(schedule)) == hash(gp.Rule(schedule))
    assert schedule.sparsity(20) == np.float32(0.2)
    linear = optax.linear_schedule(0.0, 0.5, 100)
    assert gp.custom_schedule(linear, 0, 50).fn is linear


def test_the_progress_of_a_function_is_that_of_its_sparsity():
    schedule = gp.custom_schedule(lambda step: 0.2 + step / 100, 0, 50, 10)
    assert [round(float(progress(schedule, s)), 3) for s in (0, 10, 25, 50)] == [
        *(0, 0.2, 0.4, 1)
    ]


def test_a_replaced_field_makes_another_schedule():
    schedule = gp.polynomial_schedule(0.9, 0, 10, every=1)
    longer = dataclasses.replace(schedule, end_step=100, final_sparsity=0.5)
    assert longer == gp.polynomial_schedule(0.5, 0, 100, every=1)
    assert longer.sparsity(50) == np.float32(0.5 * (1 - 0.5**3))
    with pytest.raises(ValueError, match="final_sparsity is 2"):
        dataclasses.replace(schedule, final_sparsity=2)


def test_steps_of_any_integer_dtype():
    schedule = gp.polynomial_schedule(0.9, 1_000, 2_000)
    for step in (jnp.int8(100), np.uint8(100), np.int64(100), 100):
        assert schedule.sparsity(step) == 0
        assert not schedule.is_update_step(step)
    assert schedule.sparsity(2**40) == np.float32(0.9)
    with pytest.raises(ValueError, match="must be an integer"):
        schedule.sparsity(3.0)


def test_array_scalars_are_numbers():
    schedule = gp.polynomial_schedule(jnp.float32(0.5), np.int64(3), jnp.int32(9), 3)
    assert schedule == gp.polynomial_schedule(0.5, 3, 9, 3)


def test_only_the_names_of_the_contract_are_public():
    def public(value):
        return {name for name in dir(value) if not name.startswith("_")}

    schedule = gp.polynomial_schedule(0.9, 0, 10)
    fields = {field.name for field in dataclasses.fields(schedule)}
    assert public(schedule) - fields == {"is_update_step", "sparsity", "update_steps"}
    rule = gp.Rule(schedule)
    assert public(rule) == {field.name for field in dataclasses.fields(rule)}
    for structure in (gp.Unstructured(), gp.NM(), gp.Block((2, 2)), gp.Channel()):
        names = {field.name for field in dataclasses.fields(structure)}
        assert public(structure) == names
