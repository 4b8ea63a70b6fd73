"""The first program of every process of this tool's own: enough to find the package, and nothing else of the parent.

`python -c BOOTSTRAP PACKAGE_FOLDER MODULE JOB_FOLDER ARGUMENT…`, with a pipe as standard input, calls
`MODULE.main(JOB_FOLDER, *ARGUMENTS)` with a path and integers.
"""

from typing import Final

BOOTSTRAP: Final = """\
import importlib, pathlib, sys, types
sys.path[:] = [entry for entry in sys.path if entry]
package = types.ModuleType("fp8cli")
package.__path__ = [sys.argv[1]]
sys.modules["fp8cli"] = package
importlib.import_module(sys.argv[2]).main(pathlib.Path(sys.argv[3]), *map(int, sys.argv[4:]))
"""
"""The package is a bare module that knows its folder alone: the interpreter need not have it installed, its `__init__`
and what that imports are not run, and nothing of the parent's site-packages gets onto `sys.path`. Neither does the
current folder, where a `datasets.py` of the user would stand in for the library. A child that vLLM spawns imports
nothing of this, because a program given by `-c` is not run again there.
"""
