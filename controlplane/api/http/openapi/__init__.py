"""The HTTP side of the contract as an OpenAPI 3.1 document, made from the descriptors at run time.

There is no second description to keep in step: names, types and comments come from the .proto files, constraints from
the validation rules in them.
"""
