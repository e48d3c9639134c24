/*
 * What a fuzz target is: libFuzzer's entry point, called by libFuzzer or by replay.c.
 *
 * A target aborts on what must not be; it keeps no state between inputs.
 */
#ifndef TESTS_FUZZ_TARGET_H
#define TESTS_FUZZ_TARGET_H

#include <stddef.h>
#include <stdint.h>

/* Take one input. Returns 0. */
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

#endif
