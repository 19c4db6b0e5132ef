// SPDX-License-Identifier: AGPL-3.0-only

// The aggregate function lxd_recover_sum(VALUE…): see rowsum.go. Here values become bytes; Go takes the sums, of many rows in
// one call, as a call from C to Go costs as much as hashing a row.
#include "rowsum.h"

#include <sqlite3.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "_cgo_export.h"

// FLUSH is how many bytes are collected before Go is called.
#define FLUSH (256 << 10)

struct rows {
	unsigned char *buf; // rows: their length in 4 bytes, then their values
	size_t len, cap;
	uint64_t sum;
};

static unsigned char *grow(struct rows *r, size_t n)
{
	if (r->cap - r->len < n) {
		size_t cap = r->len + n > 2 * FLUSH ? r->len + n : 2 * FLUSH;
		unsigned char *buf = realloc(r->buf, cap);
		if (buf == NULL)
			return NULL;
		r->buf = buf;
		r->cap = cap;
	}
	unsigned char *p = r->buf + r->len;
	r->len += n;
	return p;
}

static void flush(struct rows *r)
{
	if (r->len > 0)
		r->sum += sumRows(r->buf, r->len);
	r->len = 0;
}

// value appends one value: its type, and 8 bytes or its length and content.
static int value(struct rows *r, sqlite3_value *v)
{
	int type = sqlite3_value_type(v);
	unsigned char number[8];
	const void *content = number;
	uint32_t size = sizeof number;
	if (type == SQLITE_INTEGER) {
		sqlite3_int64 n = sqlite3_value_int64(v);
		memcpy(number, &n, sizeof number);
	} else if (type == SQLITE_FLOAT) {
		double d = sqlite3_value_double(v);
		memcpy(number, &d, sizeof number);
	} else if (type == SQLITE_NULL) {
		size = 0;
	} else {
		content = type == SQLITE_TEXT ? (const void *)sqlite3_value_text(v) : sqlite3_value_blob(v);
		size = (uint32_t)sqlite3_value_bytes(v);
		if (content == NULL && size > 0)
			return SQLITE_NOMEM;
	}
	unsigned char *p = grow(r, 1 + sizeof size + size);
	if (p == NULL)
		return SQLITE_NOMEM;
	p[0] = (unsigned char)type;
	memcpy(p + 1, &size, sizeof size);
	if (size > 0)
		memcpy(p + 1 + sizeof size, content, size);
	return SQLITE_OK;
}

static void step(sqlite3_context *ctx, int n, sqlite3_value **values)
{
	struct rows *r = sqlite3_aggregate_context(ctx, sizeof *r);
	if (r == NULL || grow(r, 4) == NULL) {
		sqlite3_result_error_nomem(ctx);
		return;
	}
	size_t start = r->len;
	for (int i = 0; i < n; i++) {
		if (value(r, values[i]) != SQLITE_OK) {
			r->len = start - 4; // half a row is none
			sqlite3_result_error_nomem(ctx);
			return;
		}
	}
	uint32_t size = (uint32_t)(r->len - start);
	memcpy(r->buf + start - 4, &size, 4);
	if (r->len >= FLUSH)
		flush(r);
}

static void final(sqlite3_context *ctx)
{
	struct rows *r = sqlite3_aggregate_context(ctx, 0);
	if (r == NULL) { // no rows
		sqlite3_result_int64(ctx, 0);
		return;
	}
	flush(r);
	free(r->buf);
	r->buf = NULL;
	sqlite3_result_int64(ctx, (sqlite3_int64)r->sum);
}

static int extend(sqlite3 *db, char **message, const void *api)
{
	(void)message;
	(void)api;
	return sqlite3_create_function_v2(db, "lxd_recover_sum", -1, SQLITE_UTF8 | SQLITE_DETERMINISTIC | SQLITE_DIRECTONLY,
					  NULL, NULL, step, final, NULL);
}

int rowsum_register(void)
{
	return sqlite3_auto_extension((void (*)(void))extend);
}
