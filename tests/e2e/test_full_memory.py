"""A merge that the process may not have the memory for ends in a sentence, and leaves no OUT."""

import sys
from pathlib import Path

import pytest

from tests import models
from tests.e2e import runner

# As `ulimit -v` would, but only once all that a merge imports is there: the limit is then the
# merge's own, whatever the versions of the packages take.
LIMITED = """
import resource, sys
import mergekit_lines.merges.folder, transformers.models.llama
from mergekit.scripts.run_yaml import main
status = open("/proc/self/status").read().split("VmSize:")[1]
limit = int(status.split()[0]) * 1024 + int(sys.argv.pop(1))
resource.setrlimit(resource.RLIMIT_AS, (limit, resource.RLIM_INFINITY))
main(prog_name="mergekit-yaml")
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize("mebibytes", [4, 30])
def test_full_memory_is_told(mebibytes: int, tmp_path: Path) -> None:
    """Beyond the limit of the address space a merge says so, without a traceback."""
    base = models.llama(tmp_path / "base", seed=1, vocab=4000, hidden=512, tokenizer=False)
    tuned = models.finetuned(base, tmp_path / "tuned", seed=2)
    recipe = {
        "merge_method": "lines",
        "base_model": str(base),
        "models": [{"model": str(tuned)}],
        "parameters": {"wrap": "ties", "alpha": 0.3, "beta": 0.3},
    }
    (tmp_path / "recipe.yml").write_text(runner.recipe_text(recipe), encoding="utf-8")
    script = tmp_path / "limited.py"
    script.write_text(LIMITED, encoding="utf-8")
    command = [sys.executable, str(script), str(mebibytes << 20), "recipe.yml", "out"]
    result = runner.run([*command, "--no-copy-tokenizer"], tmp_path)
    assert result.returncode == 1
    assert "the memory is full" in result.stderr
    assert "Traceback" not in result.stderr
    assert not (tmp_path / "out").exists()
