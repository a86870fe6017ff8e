def check(report, scratch):
    pass
