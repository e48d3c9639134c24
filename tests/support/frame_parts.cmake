# kvarn_test_frames: frames judged whole, for golden frames and fuzzers. Include it where needed.
include_guard(GLOBAL)
add_library(kvarn_test_frames STATIC ${CMAKE_CURRENT_LIST_DIR}/frame_parts.c)
target_include_directories(kvarn_test_frames PUBLIC ${PROJECT_SOURCE_DIR})
target_link_libraries(kvarn_test_frames
    PUBLIC kvarn_proto PRIVATE PkgConfig::XXHASH kvarn_flags)
