/*
 * exp and tanh for any vector of floats. Include it after a vec.h and after defining
 *
 *   vf_scale_by_rounded(p, x)      p * 2^n, n what x - ROUND_MAGIC is
 *   vf_copysign(magnitude, sign)   magnitude >= 0
 */
#ifndef KVARN_KERNELS_VECTOR_ELEMENTARY_H
#define KVARN_KERNELS_VECTOR_ELEMENTARY_H

/* Adding it to a float within 2^22 rounds to a whole number, which its lowest bits then hold. */
#define ROUND_MAGIC 12582912.0f

/* exp(x), x in [-87, 88] or below, to 2 units in the last place: ln 2 in two parts, degree 6. */
VF_INLINE vf vf_exp(vf x)
{
    const vf magic = vf_set1(ROUND_MAGIC);

    x = vf_min(vf_max(x, vf_set1(-87.0f)), vf_set1(88.0f));
    vf rounded = vf_fma(x, vf_set1(1.44269504f), magic);
    vf n = vf_sub(rounded, magic);
    vf f = vf_fma(n, vf_set1(-0.693359375f), x);
    f = vf_fma(n, vf_set1(2.12194440e-4f), f);
    vf p = vf_set1(1.9875691500e-4f);
    p = vf_fma(p, f, vf_set1(1.3981999507e-3f));
    p = vf_fma(p, f, vf_set1(8.3334519073e-3f));
    p = vf_fma(p, f, vf_set1(4.1665795894e-2f));
    p = vf_fma(p, f, vf_set1(1.6666665459e-1f));
    p = vf_fma(p, f, vf_set1(5.0000001201e-1f));
    p = vf_fma(p, vf_mul(f, f), vf_add(f, vf_set1(1.0f)));
    return vf_scale_by_rounded(p, rounded);
}

/* tanh(x): a polynomial near 0, where 1 - 2 / (exp(2 |x|) + 1) cancels; Cephes' coefficients. */
VF_INLINE vf vf_tanh(vf x)
{
    const vf one = vf_set1(1.0f), two = vf_set1(2.0f);
    vf a = vf_abs(x), z = vf_mul(x, x);
    vf far = vf_sub(one, vf_div(two, vf_add(vf_exp(vf_mul(two, a)), one)));
    vf p = vf_set1(-5.70498872745e-3f);

    p = vf_fma(p, z, vf_set1(2.06390887954e-2f));
    p = vf_fma(p, z, vf_set1(-5.37397155531e-2f));
    p = vf_fma(p, z, vf_set1(1.33314422036e-1f));
    p = vf_fma(p, z, vf_set1(-3.33332819422e-1f));
    p = vf_fma(vf_mul(p, z), a, a);
    return vf_copysign(vf_select_gt(a, vf_set1(0.625f), far, p), x);
}

#endif
