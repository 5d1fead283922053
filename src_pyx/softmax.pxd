# Softmax along rows: what segmentation networks end in, with two or three numbers in a row.
#
# Rows are short and lie side by side, so the exponentials are taken of many at once.
from libc.string cimport memcpy
from elementary cimport vexp
from simd cimport real, REAL_BYTES, VECTOR, vload, vload_part, vstore


cdef inline void exponentials(real *y, Py_ssize_t n) noexcept nogil:
    cdef Py_ssize_t i, whole = n - n % VECTOR
    cdef real last[VECTOR]
    for i from 0 <= i < whole by VECTOR:
        vstore(y + i, vexp(vload(y + i)))
    if whole < n:
        vstore(last, vexp(vload_part(y + whole, n - whole)))
        memcpy(y + whole, last, (n - whole) * REAL_BYTES)


cdef inline void softmax_sized(real *y, Py_ssize_t rows, Py_ssize_t n) noexcept nogil:
    cdef Py_ssize_t r, i
    cdef real *row = y
    cdef real most
    cdef double total
    for r in range(rows):
        most = row[0]
        for i in range(1, n):
            most = row[i] if row[i] > most else most
        for i in range(n):
            row[i] -= most
        row += n
    exponentials(y, rows * n)
    row = y
    for r in range(rows):
        total = 0
        for i in range(n):
            total += row[i]
        for i in range(n):
            row[i] /= <real>total
        row += n


cdef inline void softmax_rows(real *y, Py_ssize_t rows, Py_ssize_t n) noexcept nogil:
    # y[row][n] in place; frequent lengths are constants.
    if n == 2:
        softmax_sized(y, rows, 2)
    elif n == 3:
        softmax_sized(y, rows, 3)
    elif n == 4:
        softmax_sized(y, rows, 4)
    else:
        softmax_sized(y, rows, n)
