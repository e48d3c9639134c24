/*
 * Who holds what: every span, block and page that idle sessions share, counted anew and compared
 * with the counts that the daemon keeps.
 */
#ifndef TESTS_SESSION_REFS_H
#define TESTS_SESSION_REFS_H

#include <stddef.h>

#include "server/service.h"
#include "server/session/session.h"

struct kvt_refs {
    struct kvt_ref *refs; /* owned */
    size_t count, room;
    size_t distinct_pages; /* after the check */
};

/* Begin with nothing held. */
void kvt_refs_init(struct kvt_refs *refs);
void kvt_refs_fini(struct kvt_refs *refs);

/* A session's table, and the pages it keeps aside. */
void kvt_refs_add_session(struct kvt_refs *refs, const struct kvd_session *session);

/* References of others: a reader's page, a block that an index holds. */
void kvt_refs_add_page(struct kvt_refs *refs, const struct kvd_page *page);
void kvt_refs_add_block(struct kvt_refs *refs, const struct kvd_block *block);
void kvt_refs_add_index(struct kvt_refs *refs, const struct kvd_prefix_index *index);

/*
 * After everything was added: objects whose count is not the number of references found, and, if
 * the store holds other pages than were found, one more. The first ones are printed.
 */
unsigned kvt_refs_check(struct kvt_refs *refs, const struct kvd_service *service);

#endif
