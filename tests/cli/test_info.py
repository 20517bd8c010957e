"""`lsmooth info` on a real trace."""

from click.testing import CliRunner

from lsmooth.cli import main


def test_info_counts_the_steps_of_a_real_run(small_trace):
    done = CliRunner().invoke(main, ["info", str(small_trace)])
    assert done.exit_code == 0
    assert "60 measured (0 to 59, every 1), 60 well" in done.output
