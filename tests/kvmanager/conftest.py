"""Makes the helper modules of this folder importable by name: `from shadow_worker import ShadowWorker`."""

import sys
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path

for name in ("shadow_worker", "plan_maker", "modelled"):
    if name not in sys.modules:
        spec = spec_from_file_location(name, Path(__file__).with_name(f"{name}.py"))
        assert spec is not None and spec.loader is not None
        module = module_from_spec(spec)
        sys.modules[name] = module
        spec.loader.exec_module(module)
