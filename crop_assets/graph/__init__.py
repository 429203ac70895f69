"""How an asset is declared, made, reused and recorded: the only framework of the project.

A stage is declared once, by `stage`: its parameters are its inputs and the services that it uses. From that follow
its Dagster asset, the reading of its inputs, and the identity by which an earlier result is reused.
"""
