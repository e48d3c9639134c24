/*
 * Kill points: places where a test ends the process as kill -9 would.
 *
 * Owner: none. Thread: any. KVARND_TEST_KILL=point:count in the environment kills at the count-th
 * time that the point is passed; without it a point costs one compare.
 */
#ifndef KVD_KILL_POINT_H
#define KVD_KILL_POINT_H

/* Passed here; may not return. */
void kvd_kill_point(const char *point);

#endif
