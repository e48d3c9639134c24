/*
 * An input taken apart from its front: what a target decides by. Past its end all is zero.
 *
 * Owner: the target. Thread: one.
 */
#ifndef TESTS_FUZZ_INPUT_H
#define TESTS_FUZZ_INPUT_H

#include <stddef.h>
#include <stdint.h>

struct fuzz_input {
    const uint8_t *data; /* borrowed */
    size_t left;
};

static inline uint8_t fuzz_take_u8(struct fuzz_input *input)
{
    if (input->left == 0) {
        return 0;
    }
    input->left--;
    return *input->data++;
}

static inline uint16_t fuzz_take_u16(struct fuzz_input *input)
{
    const uint8_t low = fuzz_take_u8(input);

    return (uint16_t)(low | fuzz_take_u8(input) << 8);
}

static inline uint64_t fuzz_take_u64(struct fuzz_input *input)
{
    uint64_t value = 0;

    for (unsigned i = 0; i < 8; i++) {
        value |= (uint64_t)fuzz_take_u8(input) << (8 * i);
    }
    return value;
}

/* At most `bytes`, borrowed; *ret_bytes says how many there are. */
static inline const uint8_t *fuzz_take_bytes(
    struct fuzz_input *input, size_t bytes, size_t *ret_bytes)
{
    const uint8_t *at = input->data;

    *ret_bytes = bytes < input->left ? bytes : input->left;
    input->data += *ret_bytes;
    input->left -= *ret_bytes;
    return at;
}

#endif
