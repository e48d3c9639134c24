# kvarn_test_support: what tests of several rooms share. Include it where it is needed.
include_guard(GLOBAL)
add_library(kvarn_test_support STATIC
    ${CMAKE_CURRENT_LIST_DIR}/attention_f64.c
    ${CMAKE_CURRENT_LIST_DIR}/fidelity.c
    ${CMAKE_CURRENT_LIST_DIR}/npy_read.c
    ${CMAKE_CURRENT_LIST_DIR}/tiles.c)
target_include_directories(kvarn_test_support PUBLIC ${PROJECT_SOURCE_DIR})
target_link_libraries(kvarn_test_support PUBLIC kvarn m PRIVATE kvarn_flags)
