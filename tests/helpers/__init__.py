"""What several tests share: tiny models, planted data, a browser, a kernel."""

import pytest

pytest.register_assert_rewrite("helpers.harness")  # say what was found, not only that it was wrong
