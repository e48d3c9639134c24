/*
 * Sums of errors.
 *
 * Owner: the caller. Thread: any.
 */
#include "client/cli/error_sum.h"

#include <math.h>

#include "lib/base/assert.h"

static void one_add(struct error_sum *sum, double got, double want)
{
    double difference = got - want;

    /* NaN would be lost in comparisons later on; infinity is not. */
    sum->error += isfinite(difference) ? difference * difference : INFINITY;
    sum->power += isfinite(want) ? want * want : 0.0;
}

void error_sum_add(struct error_sum *sum, const float *got, const float *want, size_t count)
{
    for (size_t i = 0; i < count; i++) {
        one_add(sum, (double)got[i], (double)want[i]);
    }
    sum->count += count;
}

void error_sum_add_f64(struct error_sum *sum, const float *got, const double *want, size_t count)
{
    for (size_t i = 0; i < count; i++) {
        one_add(sum, (double)got[i], want[i]);
    }
    sum->count += count;
}

double error_sum_relative(const struct error_sum *sum)
{
    KVARN_ASSERT(sum->error >= 0.0 && sum->power >= 0.0);
    if (sum->error == 0.0) {
        return 0.0;
    }
    return sum->power > 0.0 ? sum->error / sum->power : INFINITY;
}

void lse_error_add(struct lse_error *sum, const float *got, const double *want, size_t count)
{
    for (size_t i = 0; i < count; i++) {
        double difference = isinf(want[i]) && (double)got[i] == want[i] ? 0.0 : got[i] - want[i];

        if (isnan(difference)) {
            difference = INFINITY;
        }
        sum->squares += difference * difference;
        sum->max = fmax(sum->max, fabs(difference));
    }
    sum->count += count;
}

double lse_error_rms(const struct lse_error *sum)
{
    KVARN_ASSERT(sum->squares >= 0.0);
    return sum->count == 0 ? 0.0 : sqrt(sum->squares / (double)sum->count);
}
