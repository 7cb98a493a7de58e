"""Modules that stay float32 in every precision, quantised loading included."""


def for_quantizers(names: list[str]) -> list[str]:
    """
    What `_keep_in_fp32_modules` must be for modules of `_keep_in_fp32_modules_strict` to stay whole.

    transformers' quantisers (bitsandbytes, torchao, …) know the former attribute alone, and match it from the beginning
    of a module's full name; a float16 load reads both. A cast to the dtype of a quantised weight is a cast to bytes.
    """
    return [rf"(?:.+\.){{0,1}}{name}" for name in names]
