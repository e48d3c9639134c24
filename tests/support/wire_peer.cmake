# kvd_wire_support: a service on the fake io and its peers. Include it where it is needed.
include_guard(GLOBAL)
include(${CMAKE_CURRENT_LIST_DIR}/frame_parts.cmake)
add_library(kvd_wire_support STATIC ${CMAKE_CURRENT_LIST_DIR}/wire_peer.c)
target_link_libraries(kvd_wire_support
    PUBLIC kvarnd_core kvd_test_support kvarn_proto
    PRIVATE kvarn_test_frames kvarn_flags)
