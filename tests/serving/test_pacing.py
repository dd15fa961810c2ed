"""Pace: as many tokens of a prompt as running texts can wait for."""

from rwkv_core.serving.pacing import Pace


def paced(step: float, base: float, per_token: float) -> list[int]:
    """The tokens read between steps where steps and reads take so long."""
    pace, chosen = Pace(), []
    for _ in range(300):
        pace.note_step(step)
        n_tokens = pace.n_tokens()
        pace.note_read(n_tokens, base + per_token * n_tokens)
        chosen.append(n_tokens)
    return chosen


def test_a_read_takes_less_than_two_steps() -> None:
    chosen = paced(0.010, 0.007, 0.0001)[20:]
    assert set(chosen) == {64, 128}
    # 128 take a tenth more than what there is time for: they are tried again now and then.
    assert chosen.count(128) < 60
    assert set(paced(1.0, 0.007, 0.0001)[20:]) == {512}


def test_a_pass_with_a_step_in_it_takes_less_than_three_steps() -> None:
    pace, seconds = Pace(), []
    for _ in range(300):
        if not pace.knows_step:
            pace.note_step(0.010)
            continue
        n_tokens = pace.n_tokens_beside()
        seconds.append(0.010 + 0.0001 * n_tokens)
        assert abs(pace.note_pass(n_tokens, seconds[-1]) - 0.0001 * n_tokens) < 1e-9
    assert sorted(seconds)[150] == 0.010 + 0.0128
    # 192 tokens take a little more than the time that there is: they are tried now and then.
    assert max(seconds) < 0.03 and sum(one > 0.028 for one in seconds) < 60


def test_it_reads_some_tokens_even_where_that_takes_longer() -> None:
    assert set(paced(0.001, 0.01, 0.001)) == {16}


def test_a_slow_first_time_is_not_counted() -> None:
    pace = Pace()
    pace.note_step(0.01)
    pace.note_step(0.01)
    for seconds in (5.0, 0.001, 0.001):
        for size in (16, 32, 64):
            pace.note_read(size, seconds)
    assert pace.n_tokens() >= 64
