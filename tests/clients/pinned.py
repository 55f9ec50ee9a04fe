"""Print the npm packages of `package.json` as `name@version`."""

import json
from pathlib import Path

pinned = json.loads((Path(__file__).parent / "package.json").read_text(encoding="utf-8"))["dependencies"]
print(" ".join(f"{name}@{version}" for name, version in pinned.items()))  # noqa: T201 - that is what it is for
