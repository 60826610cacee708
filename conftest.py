"""Where PyTorch is not installed, the modules that need it are not searched for examples; their tests say so."""

from importlib.util import find_spec

collect_ignore_glob = (
    []
    if find_spec("torch")
    else [
        "convla/frameworks/torch/*",
        *(f"convla/experiments/training/{part}.py" for part in ("images", "methods", "networks", "trainer")),
    ]
)
