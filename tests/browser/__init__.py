"""The studio in a real browser: Debian's Chromium, driven by Playwright; skipped where there is none.

Try it: `python -m pytest tests/browser`; with STYLORA_SCREENSHOTS=1 the pictures of docs/images are made anew.
"""
