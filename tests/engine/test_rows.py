"""SGD of the rows that steps take: where all rows are at any time is where SGD of all of them brings them."""

import pytest
import torch
from torch import nn

from hf_distill.engine.rows import RowSGD
from hf_distill.rng import generator

ROWS, STEPS = 9, 23


def problem(lr: float = 0.3, momentum: float = 0.5) -> tuple[nn.Parameter, RowSGD, nn.Parameter, torch.optim.SGD]:
    """The same values twice, with ours and with PyTorch's optimizer."""
    values = torch.randn(ROWS, 2, 3, generator=generator(0, "values"), dtype=torch.float64)
    ours, theirs = nn.Parameter(values.clone()), nn.Parameter(values.clone())
    return ours, RowSGD(ours, lr, momentum), theirs, torch.optim.SGD([theirs], lr=lr, momentum=momentum)


def draws(steps: int = STEPS, most: int = 4) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Rows of each step, in order, and their gradients; row 0 is in the first step alone, the last one in none."""
    random, found = generator(1, "draws"), []
    for step in range(steps):
        count = int(torch.randint(1, most + 1, (1,), generator=random))
        rows = 1 + torch.randperm(ROWS - 2, generator=random)[:count]
        rows = torch.cat([torch.zeros(int(step == 0), dtype=torch.long), rows]).sort().values
        found.append((rows, torch.randn(len(rows), 2, 3, generator=random, dtype=torch.float64)))
    return found


def ours_steps(optimizer: RowSGD, rows: torch.Tensor, gradient: torch.Tensor) -> None:
    optimizer.begin(rows)
    optimizer.add(rows[:1], gradient[:1] / 4)  # in parts, as several draws add them
    optimizer.add(rows, gradient)
    optimizer.add(rows[:1], -gradient[:1] / 4)
    optimizer.step()


def theirs_steps(
    parameter: nn.Parameter, optimizer: torch.optim.SGD, rows: torch.Tensor, gradient: torch.Tensor
) -> None:
    parameter.grad = torch.zeros_like(parameter).index_copy(0, rows, gradient)
    optimizer.step()


@pytest.mark.parametrize("momentum", [0.0, 0.5, 0.9, 1.0])
def test_all_rows_are_where_sgd_of_all_rows_brings_them_at_each_step(momentum):
    ours, rowwise, theirs, sgd = problem(momentum=momentum)
    for rows, gradient in draws():
        ours_steps(rowwise, rows, gradient)
        theirs_steps(theirs, sgd, rows, gradient)
        torch.testing.assert_close(rowwise.now(), theirs.detach(), rtol=1e-12, atol=1e-12)
    rowwise.settle()
    torch.testing.assert_close(ours.detach(), theirs.detach(), rtol=1e-12, atol=1e-12)
    assert not rowwise.state[ours]["behind"].any()


def test_where_all_rows_are_in_each_step_the_bits_are_those_of_sgd():
    ours, rowwise, theirs, sgd = problem()
    for step in range(5):
        gradient = torch.randn(ours.shape, generator=generator(step, "all"), dtype=torch.float64)
        rowwise.begin(torch.arange(ROWS))
        rowwise.add(torch.arange(ROWS), gradient)
        rowwise.step()
        theirs_steps(theirs, sgd, torch.arange(ROWS), gradient)
        assert torch.equal(ours, theirs)
        assert not rowwise.is_behind
        assert torch.equal(rowwise.now(), ours)


def test_looking_and_saving_change_no_bit_and_a_step_touches_its_rows_alone():
    plain, looked_at = problem()[:2], problem()[:2]
    for step, (rows, gradient) in enumerate(draws()):
        before = plain[0].detach().clone()
        ours_steps(plain[1], rows, gradient)
        others = [row for row in range(ROWS) if row not in rows.tolist()]
        assert torch.equal(plain[0][others], before[others])
        ours_steps(looked_at[1], rows, gradient)
        looked_at[1].now()
        if step % 3 == 0:  # goes on in an optimizer of its own from what a checkpoint has
            again = nn.Parameter(looked_at[0].detach().clone())
            state = {name: value.clone() for name, value in looked_at[1].state_dict()["state"][0].items()}
            looked_at = again, RowSGD(again, 0.3, 0.5)
            looked_at[1].load_state_dict({**looked_at[1].state_dict(), "state": {0: state}})
    assert torch.equal(plain[0], looked_at[0])
    for name, value in plain[1].state[plain[0]].items():
        assert torch.equal(value, looked_at[1].state[looked_at[0]][name]), name


def test_what_rows_are_behind_when_rates_change_they_move_at_the_old_ones():
    ours, rowwise, theirs, sgd = problem(lr=0.3, momentum=0.9)
    for rows, gradient in draws(7):
        ours_steps(rowwise, rows, gradient)
        theirs_steps(theirs, sgd, rows, gradient)
    state = rowwise.state_dict()["state"]
    rowwise = RowSGD(ours, 0.01, 0.2)
    rowwise.load_state_dict({**rowwise.state_dict(), "state": state})
    sgd.param_groups[0].update(lr=0.01, momentum=0.2)
    for rows, gradient in draws(5):
        ours_steps(rowwise, rows, gradient)
        theirs_steps(theirs, sgd, rows, gradient)
    torch.testing.assert_close(rowwise.now(), theirs.detach(), rtol=1e-12, atol=1e-12)


def test_the_state_of_sgd_is_gone_on_with():
    ours, _, theirs, sgd = problem()
    for rows, gradient in draws(4):
        theirs_steps(theirs, sgd, rows, gradient)
    with torch.no_grad():
        ours.copy_(theirs)
    rowwise = RowSGD(ours, 0.3, 0.5)
    rowwise.load_state_dict(sgd.state_dict())
    for rows, gradient in draws(6):
        ours_steps(rowwise, rows, gradient)
        theirs_steps(theirs, sgd, rows, gradient)
    torch.testing.assert_close(rowwise.now(), theirs.detach(), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(
    ("changed", "says"),
    [
        ({"behind": torch.zeros(ROWS - 1, dtype=torch.int32)}, r"behind of shape \(8,\); expected \(9,\)"),
        ({"behind": torch.zeros(1, dtype=torch.int32)}, r"behind of shape \(1,\)"),
        ({"behind": torch.full((ROWS,), -5, dtype=torch.int32)}, "behind with other values than whole numbers from 0"),
        ({"behind": torch.full((ROWS,), 0.5)}, "behind with other values"),
        ({"rates": torch.tensor([0.3, float("nan")], dtype=torch.float64)}, "rates with other values than finite"),
        ({"rates": torch.zeros(3, dtype=torch.float64)}, r"rates of shape \(3,\)"),
        ({"momentum_buffer": torch.zeros(3)}, r"momentum_buffer of shape \(3,\)"),
        ({"foo": torch.zeros(1)}, r"foo of shape \(1,\); expected nothing"),
        ({"rates": None}, "has one of `behind` and `rates`; expected both"),
    ],
)
def test_a_state_that_no_steps_lead_to_is_refused(changed, says):
    ours, rowwise, *_ = problem()
    for rows, gradient in draws(3):
        ours_steps(rowwise, rows, gradient)
    state = {**rowwise.state_dict()["state"][0], **changed}
    state = {name: value for name, value in state.items() if value is not None}
    other = RowSGD(nn.Parameter(ours.detach().clone()), 0.3, 0.5)
    with pytest.raises(ValueError, match=says):
        other.load_state_dict({**other.state_dict(), "state": {0: state}})
