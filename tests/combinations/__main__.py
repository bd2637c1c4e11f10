"""`python -m tests.combinations`: write docs/combinations.md."""

from __future__ import annotations

from tests.combinations.page import PAGE, page

PAGE.write_text(page())
print(f"written: {PAGE}")
