"""The studio's pages, a script each, run by `studio/app/main.py`. Try it: `stylora app`"""
