"""The attention backends that diffusers knows by name, for what must not import it to check a name."""

from __future__ import annotations

# `diffusers.models.attention_dispatch.AttentionBackendName` of 0.42. Those with an underscore choose among kernels that
# another name chooses from by itself.
ATTENTION_BACKENDS = (
    *("native", "_native_cudnn", "_native_efficient", "_native_flash", "_native_math", "_native_npu", "_native_xla"),
    *("flash", "flash_hub", "flash_varlen", "flash_varlen_hub", "flash_4_hub"),
    *("_flash_3", "_flash_varlen_3", "_flash_3_hub", "_flash_3_varlen_hub"),
    *("flex", "xformers", "aiter_fa2_hub"),
    *("sage", "sage_hub", "sage_blackwell_hub", "sage_varlen"),
    *("_sage_qk_int8_pv_fp8_cuda", "_sage_qk_int8_pv_fp8_cuda_sm90"),
    *("_sage_qk_int8_pv_fp16_cuda", "_sage_qk_int8_pv_fp16_triton"),
)
