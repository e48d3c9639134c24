# Compiler flags of every target: warnings, hardening, sanitizers. Linked through kvarn_flags.
add_library(kvarn_flags INTERFACE)
target_compile_definitions(kvarn_flags INTERFACE _GNU_SOURCE)
target_compile_options(kvarn_flags INTERFACE
    -ffp-contract=off -fno-math-errno
    -Wall -Wextra -Wshadow -Wconversion -Wstrict-prototypes -Wmissing-prototypes -Wcast-align
    -Wformat=2 -Wimplicit-fallthrough -Wundef -Wvla -Wwrite-strings)
if(KVARND_WERROR)
    target_compile_options(kvarn_flags INTERFACE -Werror)
endif()

if(KVARND_FUZZ AND NOT KVARND_SANITIZE)
    # Coverage needs a run-time in every program, which comes with the sanitizers.
    message(STATUS "fuzzing goes with sanitizers: KVARND_SANITIZE is set to address,undefined")
    set(KVARND_SANITIZE address,undefined)
endif()
if(KVARND_SANITIZE)
    target_compile_options(kvarn_flags INTERFACE -fsanitize=${KVARND_SANITIZE}
        -fno-omit-frame-pointer -fno-sanitize-recover=all -g)
    target_link_options(kvarn_flags INTERFACE -fsanitize=${KVARND_SANITIZE})
    if(KVARND_JEMALLOC)
        message(STATUS "sanitizers see malloc only: KVARND_JEMALLOC is turned off")
        set(KVARND_JEMALLOC OFF)
    endif()
else()
    target_compile_options(kvarn_flags INTERFACE -fstack-protector-strong)
    # Undefined first: some distributions define it by themselves, to another level. An -O0 build
    # has none.
    target_compile_options(kvarn_flags INTERFACE
        "$<$<NOT:$<CONFIG:Debug>>:SHELL:-U_FORTIFY_SOURCE -D_FORTIFY_SOURCE=2>")
    target_link_options(kvarn_flags INTERFACE -Wl,-z,relro,-z,now)
endif()
if(KVARND_FUZZ)
    target_compile_options(kvarn_flags INTERFACE -fsanitize=fuzzer-no-link)
endif()
include(CheckPIESupported)
check_pie_supported(LANGUAGES C)
