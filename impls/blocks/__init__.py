"""Blocks: small modules that map (B, T, D) to itself, one mechanism a file, made of the operators' own forms.

They are what ``linverify stability`` trains and compares: ``linverify.impls.blocks.gla:GLA``. One more is a file with a
subclass of `PreNorm`, which says how its mixer reads a layer's input.
"""
