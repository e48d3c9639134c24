/*
 * Sums of errors: how far numbers that came back are from the ones that were sent.
 *
 * Owner: the caller; plain values without resources. Thread: any.
 */
#ifndef KVARNCTL_ERROR_SUM_H
#define KVARNCTL_ERROR_SUM_H

#include <stddef.h>
#include <stdint.h>

/* Of tensors: relMSE = sum of squared errors / sum of squares of what was wanted. */
struct error_sum {
    double error; /* sum of (got - want)^2 */
    double power; /* sum of want^2 */
    uint64_t count;
};

/* Add `count` values. A value that is not finite on one side makes the error infinite. */
void error_sum_add(struct error_sum *sum, const float *got, const float *want, size_t count);
void error_sum_add_f64(struct error_sum *sum, const float *got, const double *want, size_t count);

/* The relative error: 0 without values or where all agree, INFINITY for errors of nothing. */
double error_sum_relative(const struct error_sum *sum);

/* Of log-sum-exps, whose errors are absolute: a difference d is a factor e^d of every weight. */
struct lse_error {
    double squares; /* sum of (got - want)^2 */
    double max;     /* largest |got - want| */
    uint64_t count;
};

/* Equal infinities (an empty range) are no error. */
void lse_error_add(struct lse_error *sum, const float *got, const double *want, size_t count);

/* Root of the mean square, in nats; 0 without values. */
double lse_error_rms(const struct lse_error *sum);

#endif
