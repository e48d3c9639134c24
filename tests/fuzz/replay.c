/*
 * Regression driver: runs every file of some folders through a fuzz target, with any compiler.
 *
 * usage: replay_TARGET FOLDER... Owner: ctest. Thread: one. Fails when it found no file.
 */
#include <dirent.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "tests/fuzz/fuzz_target.h"

#define INPUT_BYTES_MAX (1024 * 1024)

static int name_compare(const struct dirent **a, const struct dirent **b)
{
    return strcmp((*a)->d_name, (*b)->d_name);
}

/* Run one file; false when it cannot be read whole. */
static bool file_replay(const char *path)
{
    FILE *file = fopen(path, "rb");
    uint8_t *room = malloc(INPUT_BYTES_MAX);
    bool ok = false;

    if (file != NULL && room != NULL) {
        const size_t bytes = fread(room, 1, INPUT_BYTES_MAX, file);
        /* Memory of exactly its size: sanitizers see a read past the end. */
        uint8_t *input = malloc(bytes + (bytes == 0));
        ok = !ferror(file) && bytes < INPUT_BYTES_MAX && input != NULL;
        if (ok) {
            memcpy(input, room, bytes);
            (void)LLVMFuzzerTestOneInput(input, bytes);
        }
        free(input);
    }
    if (file != NULL) {
        fclose(file);
    }
    free(room);
    return ok;
}

/* Run the files of a folder in order of their names; returns how many, -1 on an error. */
static int folder_replay(const char *folder)
{
    struct dirent **entries = NULL;
    const int entry_count = scandir(folder, &entries, NULL, name_compare);
    int count = 0;

    for (int i = 0; i < entry_count; i++) {
        char path[4096];
        struct stat info;
        const int n = snprintf(path, sizeof path, "%s/%s", folder, entries[i]->d_name);

        free(entries[i]);
        if (count < 0 || n < 0 || (size_t)n >= sizeof path || stat(path, &info) != 0 ||
            !S_ISREG(info.st_mode)) {
            continue;
        }
        /* Said before it runs: after a crash the last line names the input. */
        printf("%s\n", path);
        fflush(stdout);
        count = file_replay(path) ? count + 1 : -1;
    }
    free(entries);
    return entry_count < 0 ? -1 : count;
}

int main(int argc, char **argv)
{
    int total = 0;

    for (int i = 1; i < argc; i++) {
        const int count = folder_replay(argv[i]);

        if (count <= 0) {
            printf("%s: %s\n", argv[i], count == 0 ? "no file" : "cannot be read");
            return 1;
        }
        total += count;
    }
    printf("replayed %d files of %d folders\n", total, argc - 1);
    return total > 0 ? 0 : 1;
}
