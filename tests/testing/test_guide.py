"""The code of the testing guide runs as it is printed."""

import inspect
import re
import sys
import types
from pathlib import Path

GUIDE = Path(__file__).parents[2] / "docs" / "guides" / "testing.md"


async def test_every_test_of_the_guide_passes() -> None:
    code = "\n\n".join(re.findall(r"^```python\n(.*?)^```$", GUIDE.read_text(), re.M | re.S))
    module = types.ModuleType("durable_testing_guide")
    sys.modules[module.__name__] = module
    exec(compile(code, str(GUIDE), "exec"), vars(module))

    tests = [value for name, value in vars(module).items() if name.startswith("test_")]
    names = {test.__name__ for test in tests}
    assert "test_old_orders_replay" in names
    for test in tests:
        if inspect.iscoroutinefunction(test):
            await test()
