"""Pieces that several pages share: a rack of adapters, a gallery, live progress, notices. Try it: `stylora app`"""
