// The AVX-512 intrinsics and the attribute of functions that use them; include only where
// __x86_64__ is defined.
#pragma once

#if defined(__GNUC__) && !defined(__clang__)
// gcc 12's own AVX-512 headers trip these warnings (GCC bug 105593: _mm512_undefined_pd).
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#pragma GCC diagnostic ignored "-Wuninitialized"
#endif
#include <immintrin.h>

#define METACURV_AVX512 __attribute__((target("avx2,f16c,avx512f,avx512bw,avx512dq,avx512vl")))
